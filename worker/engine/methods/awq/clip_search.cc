#include "worker/engine/methods/awq/clip_search.h"

#include <algorithm>

#include "worker/engine/quant/grid.h"

namespace quantry::engine {
namespace {

constexpr int kShrinkLevels = 10;
constexpr double kShrinkStep = 0.05;
constexpr int64_t kRowsAtOnce = 256;
// Partial outputs [groups, tokens, rows] held at once: 16 MB.
constexpr int64_t kPartialOutputs = int64_t{1} << 22;

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
  return at::bmm(x, error.permute({1, 2, 0})).square_().mean(1).t();
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
    const at::Tensor quantized = FakeQuantize(clipped.view(weight.sizes()), grid, scale_dtype);
    const at::Tensor errors = PartialError(x, quantized.view(grouped.sizes()).sub_(grouped));
    if (level == 0) {
      best = {clipped, errors.contiguous(), at::zeros_like(errors, at::kLong)};
      continue;
    }
    const at::Tensor better = errors < best.errors;
    best.errors = at::where(better, errors, best.errors);
    best.levels.masked_fill_(better, level);
    best.weight = at::where(better.unsqueeze(-1), clipped, best.weight);
  }
  best.weight = best.weight.view(weight.sizes());
  return best;
}

}  // namespace

bool MayClip(LinearRole role) { return role != LinearRole::kQuery && role != LinearRole::kKey; }

ClippedWeight SearchClip(const at::Tensor& weight, const at::Tensor& samples, const GridSpec& grid,
                         at::ScalarType scale_dtype) {
  const int64_t group = grid.GroupSizeFor(weight.size(1));
  const int64_t groups = weight.size(1) / group;
  const at::Tensor x =
      samples.view({samples.size(0), groups, group}).permute({1, 0, 2}).contiguous();
  const int64_t rows =
      std::clamp<int64_t>(kPartialOutputs / (groups * samples.size(0)), 1, kRowsAtOnce);
  ClippedWeight result{at::empty_like(weight), {}, {}};
  std::vector<at::Tensor> errors;
  std::vector<at::Tensor> levels;
  for (int64_t row = 0; row < weight.size(0); row += rows) {
    const int64_t end = std::min(row + rows, weight.size(0));
    const ClippedWeight part = SearchRows(weight.slice(0, row, end), x, grid, scale_dtype);
    result.weight.slice(0, row, end).copy_(part.weight);
    errors.push_back(part.errors);
    levels.push_back(part.levels);
  }
  result.errors = at::cat(errors);
  result.levels = at::cat(levels);
  return result;
}

}  // namespace quantry::engine
