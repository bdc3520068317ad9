#include "worker/engine/methods/awq/clip_search.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "worker/engine/base/parallel.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {
namespace {

constexpr int kShrinkLevels = 10;
constexpr double kShrinkStep = 0.05;
// Rows of one piece, and partial outputs [groups, tokens, rows] of it. Pieces
// run side by side on the CPU and stay in its caches; a GPU wants few and large.
struct PieceLimits {
  int64_t rows;
  int64_t partial_outputs;
};
constexpr PieceLimits kCpuPiece = {32, int64_t{1} << 22};
constexpr PieceLimits kGpuPiece = {4096, int64_t{1} << 26};

// Rows of a piece at most.
int64_t PieceRows(const at::Device& device, int64_t groups, int64_t tokens) {
  const PieceLimits& limits = device.is_cpu() ? kCpuPiece : kGpuPiece;
  const int64_t outputs = std::max<int64_t>(1, groups * tokens);  // of a row
  return std::clamp<int64_t>(limits.partial_outputs / outputs, 1, limits.rows);
}

struct Range {
  at::Tensor lo;  // [rows, groups, 1]
  at::Tensor hi;
};

Range RangeOf(const at::Tensor& grouped, bool symmetric) {
  auto [lo, hi] = at::aminmax(grouped, -1, /*keepdim=*/true);
  if (symmetric) {
    hi = at::maximum(hi, lo.neg());
    lo = hi.neg();
  }
  return {lo, hi};
}

// Sampled inputs by group, as the linear sees them.
struct Tokens {
  at::Tensor x;      // [groups, tokens, g], quantized where activations are
  at::Tensor noise;  // x less the inputs before that; undefined where they are not
};

Tokens ByGroup(const ClipSamples& inputs, int64_t groups) {
  const auto grouped = [&](const at::Tensor& x) {
    return x.reshape({x.size(0), groups, -1}).permute({1, 0, 2}).contiguous();
  };
  if (!inputs.activations.enabled()) return {grouped(inputs.samples), {}};
  const at::Tensor x = FakeQuantizeActivations(inputs.samples, inputs.activations.bits);
  return {grouped(x), grouped(x - inputs.samples)};
}

// [groups, tokens, rows] of x [groups, tokens, g] and weights [rows, groups, g].
at::Tensor PartialOutputs(const at::Tensor& x, const at::Tensor& weight) {
  return at::bmm(x, weight.permute({1, 2, 0}));
}

// Mean over tokens of the squared error of the partial outputs, [rows, groups]:
// x (w + e) - x' w = x e + (x - x') w, whose last term is `noise`.
at::Tensor PartialError(const at::Tensor& x, const at::Tensor& error, const at::Tensor& noise) {
  at::Tensor outputs = PartialOutputs(x, error);
  if (noise.defined()) outputs.add_(noise);
  return outputs.square_().mean(1).t().contiguous();
}

// SearchClip of some rows.
ClippedWeight SearchRows(const at::Tensor& weight, const Tokens& tokens, const GridSpec& grid,
                         at::ScalarType scale_dtype) {
  const at::Tensor& x = tokens.x;
  const at::Tensor grouped = weight.contiguous().view({weight.size(0), x.size(0), x.size(2)});
  const at::Tensor noise =
      tokens.noise.defined() ? PartialOutputs(tokens.noise, grouped) : at::Tensor();
  const Range range = RangeOf(grouped, grid.symmetric);
  ClippedWeight best;
  for (int level = 0; level < kShrinkLevels; ++level) {
    const double keep = 1.0 - kShrinkStep * level;
    const at::Tensor clipped = grouped.clamp(range.lo * keep, range.hi * keep);
    const at::Tensor quantized = FakeQuantize(clipped.reshape(weight.sizes()), grid, scale_dtype);
    const at::Tensor errors =
        PartialError(x, quantized.reshape(grouped.sizes()).sub_(grouped), noise);
    if (level == 0) {
      best = {clipped, errors, at::zeros_like(errors, at::kLong)};
      continue;
    }
    const at::Tensor better = errors < best.errors;
    best.errors = at::where(better, errors, best.errors);
    best.levels.masked_fill_(better, level);
    best.weight = at::where(better.unsqueeze(-1), clipped, best.weight);
  }
  best.weight = best.weight.reshape(weight.sizes());
  return best;
}

}  // namespace

bool MayClip(LinearRole role) { return role != LinearRole::kQuery && role != LinearRole::kKey; }

ClippedWeight SearchClip(const at::Tensor& weight, const ClipSamples& inputs, const GridSpec& grid,
                         at::ScalarType scale_dtype) {
  const int64_t group = grid.GroupSizeFor(weight.size(1));
  const int64_t groups = weight.size(1) / group;
  const Tokens tokens = ByGroup(inputs, groups);
  const int64_t rows = PieceRows(weight.device(), groups, inputs.samples.size(0));
  const int64_t parts = (weight.size(0) + rows - 1) / rows;
  ClippedWeight result{at::empty_like(weight),
                       at::empty({weight.size(0), groups}, weight.options()),
                       at::empty({weight.size(0), groups}, weight.options().dtype(at::kLong))};
  const auto search = [&](int64_t part) {
    const int64_t begin = part * rows;
    const int64_t end = std::min(begin + rows, weight.size(0));
    const ClippedWeight best = SearchRows(weight.slice(0, begin, end), tokens, grid, scale_dtype);
    result.weight.slice(0, begin, end).copy_(best.weight);
    result.errors.slice(0, begin, end).copy_(best.errors);
    result.levels.slice(0, begin, end).copy_(best.levels);
  };
  if (weight.is_cpu()) {
    ForEachInParallel(parts, search);
  } else {
    for (int64_t part = 0; part < parts; ++part) search(part);
  }
  return result;
}

int64_t ClipSearchBytes(const LinearShape& shape, int64_t tokens, int64_t group_size,
                        const at::Device& device) {
  // Partial outputs and their noise; weights clamped, rounded, the best, and on the way there.
  constexpr int64_t kOutputs = 2, kWeights = 6;
  const int64_t groups = group_size > 0 ? std::max<int64_t>(1, shape.in / group_size) : 1;
  const int64_t rows = std::min(shape.out, PieceRows(device, groups, tokens));
  const int64_t pieces = (shape.out + rows - 1) / rows;
  const int64_t at_once = device.is_cpu() ? std::min<int64_t>(at::get_num_threads(), pieces) : 1;
  return at_once * rows * (kOutputs * groups * tokens + kWeights * shape.in) *
         static_cast<int64_t>(sizeof(float));
}

}  // namespace quantry::engine
