#include "worker/engine/methods/ptq161/binarize.h"

#include <limits>

#include "worker/engine/quant/grid.h"

namespace quantry::engine {
namespace {

constexpr double kTopCode = 15.0;

// The next fp16 above where rounding went below: a smaller scale would push
// the row's extremes past the last code.
at::Tensor RoundScalesUp(const at::Tensor& scales) {
  const at::Tensor nearest = RoundScales(scales, at::kHalf);
  const at::Tensor above =
      nearest.to(at::kHalf).view(at::kShort).add(1).view(at::kHalf).to(at::kFloat);
  return at::where(nearest < scales, RoundScales(above, at::kHalf), nearest);
}

}  // namespace

SalientGrid FitSalientGrid(const at::Tensor& weight) {
  if (weight.size(1) == 0) {
    return {at::ones({weight.size(0)}, weight.options()),
            at::zeros({weight.size(0)}, weight.options())};
  }
  auto [lo, hi] = at::aminmax(weight, 1);
  lo = lo.clamp_max(0.0);
  hi = hi.clamp_min(0.0);
  const at::Tensor empty = lo.eq(0.0).logical_and(hi.eq(0.0));
  lo = lo.masked_fill(empty, -1.0);
  hi = hi.masked_fill(empty, 1.0);
  SalientGrid grid;
  grid.scales = RoundScalesUp((hi - lo).div_(kTopCode));
  grid.zeros = lo.neg().div_(grid.scales).round_().clamp_(0.0, kTopCode);
  return grid;
}

at::Tensor SalientCodes(const at::Tensor& weight, const SalientGrid& grid) {
  return weight.div(grid.scales.unsqueeze(-1))
      .round_()
      .add_(grid.zeros.unsqueeze(-1))
      .clamp_(0.0, kTopCode)
      .to(at::kByte);
}

BinaryRows BinarizeRows(const at::Tensor& weight, bool centered_gain) {
  const at::Tensor present = weight.ne(0.0);
  const at::Tensor count = present.sum(1).clamp_min(1).to(at::kDouble);
  const auto mean_of = [&](const at::Tensor& values) {
    return values.sum(1, false, at::kDouble).div_(count).to(at::kFloat);
  };
  BinaryRows rows;
  rows.mean = mean_of(weight);  // absent entries are zeros
  const at::Tensor centered = weight - rows.mean.unsqueeze(-1);
  rows.gain = mean_of(centered_gain ? centered.abs().mul_(present) : weight.abs());
  if (weight.size(1) > 0) {
    // Rows of one level (and zeros): {v} = v +- 0, {0, v} = v/2 +- |v|/2.
    const double infinity = std::numeric_limits<double>::infinity();
    const at::Tensor low = weight.masked_fill(present.logical_not(), infinity).amin(1);
    const at::Tensor high = weight.masked_fill(present.logical_not(), -infinity).amax(1);
    const at::Tensor level = low.eq(high);
    const at::Tensor half =
        at::where(present.all(1), at::zeros_like(rows.gain), rows.mean.abs().mul(0.5));
    rows.mean = at::where(level, at::where(present.all(1), low, low.mul(0.5)), rows.mean);
    rows.gain = at::where(level, half, rows.gain);
  }
  rows.signs = weight.ge(rows.mean.unsqueeze(-1)).to(at::kByte);
  return rows;
}

}  // namespace quantry::engine
