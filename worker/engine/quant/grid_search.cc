#include "worker/engine/quant/grid_search.h"

namespace quantry::engine {
namespace {

constexpr int kCandidates = 80;
constexpr double kStep = 0.01;
constexpr double kPower = 2.4;

}  // namespace

GroupGrid SearchGrid(const at::Tensor& weight, const GridSpec& spec, at::ScalarType scale_dtype) {
  const int64_t group = spec.GroupSizeFor(weight.size(1));
  const at::Tensor grouped =
      weight.contiguous().view({weight.size(0), weight.size(1) / group, group});
  GroupGrid best;
  at::Tensor least;
  for (int i = 0; i < kCandidates; ++i) {
    // A range shrunk at both ends is the range of the weight scaled down.
    GroupGrid grid = MinMaxGrid(weight * (1.0 - kStep * i), spec, scale_dtype);
    const at::Tensor scales = grid.scales.unsqueeze(-1), zeros = grid.zeros.unsqueeze(-1);
    const at::Tensor values = grouped.div(scales)
                                  .round_()
                                  .add_(zeros)
                                  .clamp_(0.0, static_cast<double>(spec.qmax()))
                                  .sub_(zeros)
                                  .mul_(scales);
    const at::Tensor error = values.sub_(grouped).abs_().pow_(kPower).sum(-1);
    if (i == 0) {
      best = grid;
      least = error;
      continue;
    }
    const at::Tensor better = error < least;
    best.scales = at::where(better, grid.scales, best.scales);
    best.zeros = at::where(better, grid.zeros, best.zeros);
    least = at::where(better, error, least);
  }
  return best;
}

}  // namespace quantry::engine
