#include "worker/engine/methods/awq/clip_search.h"

#include <ATen/Parallel.h>

#include <algorithm>

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

// Mean over tokens of the squared partial output of `error` [rows, groups, g];
// x: [groups, tokens, g]. Returns [rows, groups].
at::Tensor PartialError(const at::Tensor& x, const at::Tensor& error) {
  return at::bmm(x, error.permute({1, 2, 0})).square_().mean(1).t().contiguous();
}

// SearchClip of some rows; x: [groups, tokens, g].
ClippedWeight SearchRows(const at::Tensor& weight, const at::Tensor& x, const GridSpec& grid,
                         at::ScalarType scale_dtype) {
  const at::Tensor grouped = weight.contiguous().view({weight.size(0), x.size(0), x.size(2)});
  const Range range = RangeOf(grouped, grid.symmetric);
  ClippedWeight best;
  for (int level = 0; level < kShrinkLevels; ++level) {
    const double keep = 1.0 - kShrinkStep * level;
    const at::Tensor clipped = grouped.clamp(range.lo * keep, range.hi * keep);
    const at::Tensor quantized = FakeQuantize(clipped.reshape(weight.sizes()), grid, scale_dtype);
    const at::Tensor errors = PartialError(x, quantized.reshape(grouped.sizes()).sub_(grouped));
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

ClippedWeight SearchClip(const at::Tensor& weight, const at::Tensor& samples, const GridSpec& grid,
                         at::ScalarType scale_dtype) {
  const int64_t group = grid.GroupSizeFor(weight.size(1));
  const int64_t groups = weight.size(1) / group;
  const at::Tensor x =
      samples.reshape({samples.size(0), groups, group}).permute({1, 0, 2}).contiguous();
  const PieceLimits& limits = weight.is_cpu() ? kCpuPiece : kGpuPiece;
  const int64_t rows =
      std::clamp<int64_t>(limits.partial_outputs / (groups * samples.size(0)), 1, limits.rows);
  const int64_t parts = (weight.size(0) + rows - 1) / rows;
  ClippedWeight result{at::empty_like(weight),
                       at::empty({weight.size(0), groups}, weight.options()),
                       at::empty({weight.size(0), groups}, weight.options().dtype(at::kLong))};
  const auto search = [&](int64_t part) {
    const int64_t begin = part * rows;
    const int64_t end = std::min(begin + rows, weight.size(0));
    const ClippedWeight best = SearchRows(weight.slice(0, begin, end), x, grid, scale_dtype);
    result.weight.slice(0, begin, end).copy_(best.weight);
    result.errors.slice(0, begin, end).copy_(best.errors);
    result.levels.slice(0, begin, end).copy_(best.levels);
  };
  const auto some = [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) search(part);
  };
  if (weight.is_cpu()) {
    at::parallel_for(0, parts, 1, some);
  } else {
    some(0, parts);
  }
  return result;
}

}  // namespace quantry::engine
