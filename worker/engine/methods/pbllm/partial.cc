#include "worker/engine/methods/pbllm/partial.h"

#include <algorithm>
#include <cmath>

#include "worker/engine/quant/grid.h"

namespace quantry::engine {
namespace {

const GridSpec kHighGrid = {kPbllmHighBits, -1, false};

// Entries whose saliency is at most that of the sorted one at low share of all.
at::Tensor LowEntries(const at::Tensor& saliency, double salient_ratio) {
  const int64_t count = PbllmLowCount(saliency.numel(), salient_ratio);
  const at::Tensor sorted = std::get<0>(saliency.flatten().sort());
  return saliency.le(sorted[count - 1].item<float>());
}

void FitLow(const at::Tensor& weight, bool count_norm, PartialBinary* result) {
  const at::Tensor inside = result->low.to(at::kFloat);
  const at::Tensor masked = weight * inside;
  if (!count_norm) {
    // Masked-out entries are zeros of both means, as in the authors' code.
    result->low_mean = masked.mean(1, /*keepdim=*/true);
    result->low_gain = (masked - result->low_mean).abs().mean(1, true);
    return;
  }
  const at::Tensor counts = inside.sum(1, true).clamp_min_(1.0);
  result->low_mean = masked.sum(1, true) / counts;
  result->low_gain = ((weight - result->low_mean).abs() * inside).sum(1, true) / counts;
}

// Rounds columns [n, c]; `low`: the same columns of the mask.
at::Tensor Round(const at::Tensor& columns, const at::Tensor& low, const PartialBinary& fit) {
  const at::Tensor codes =
      (columns / fit.scales).round_().add_(fit.zeros).clamp_(0.0, kHighGrid.qmax());
  const at::Tensor high = codes.sub_(fit.zeros).mul_(fit.scales);
  const at::Tensor binary =
      at::where(columns.ge(fit.low_mean), fit.low_mean + fit.low_gain, fit.low_mean - fit.low_gain);
  return at::where(low, binary, high);
}

}  // namespace

int64_t PbllmLowCount(int64_t entries, double salient_ratio) {
  const auto count = static_cast<int64_t>(static_cast<double>(entries) * (1.0 - salient_ratio));
  return std::clamp<int64_t>(count + 1, 1, std::max<int64_t>(entries - 1, 1));
}

PartialBinary BinarizePartially(const at::Tensor& weight, const at::Tensor& upper,
                                at::ScalarType scale_dtype, const PbllmOptions& options) {
  PartialBinary result;
  const GroupGrid grid = MinMaxGrid(weight, kHighGrid, scale_dtype);
  result.scales = grid.scales;
  result.zeros = grid.zeros;
  const bool hessian = upper.defined() && options.metric == PbllmOptions::Metric::kHessian;
  result.low = LowEntries(hessian ? weight.square() / upper.diagonal().square() : weight.abs(),
                          options.salient_ratio);
  FitLow(weight, options.count_norm, &result);
  if (!upper.defined()) {
    result.values = Round(weight, result.low, result);
    return result;
  }
  // Transposed, so that a column is one contiguous row.
  at::Tensor left = weight.t().contiguous();
  result.values = at::empty_like(weight);
  const int64_t columns = weight.size(1);
  for (int64_t first = 0; first < columns; first += options.block_size) {
    const int64_t count = std::min(options.block_size, columns - first);
    at::Tensor errors = at::empty({count, weight.size(0)}, weight.options());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = first + i;
      const at::Tensor value = left[column].unsqueeze(1);
      const at::Tensor rounded = Round(value, result.low.narrow(1, column, 1), result);
      result.values.narrow(1, column, 1).copy_(rounded);
      errors[i].copy_((value - rounded).squeeze(1)).div_(upper[column][column]);
      if (i + 1 == count) continue;
      left.narrow(0, column + 1, count - i - 1)
          .addr_(upper[column].narrow(0, column + 1, count - i - 1), errors[i], 1, -1);
    }
    result.loss += 0.5 * errors.square().sum(at::kDouble).item<double>();
    const int64_t rest = columns - first - count;
    if (rest == 0) continue;
    left.narrow(0, first + count, rest)
        .addmm_(upper.narrow(0, first, count).narrow(1, first + count, rest).t(), errors, 1, -1);
  }
  return result;
}

int64_t PbllmBits(int64_t rows, int64_t columns, double salient_ratio) {
  const int64_t entries = rows * columns;
  const int64_t low = PbllmLowCount(entries, salient_ratio);
  return low + kPbllmHighBits * (entries - low) + entries + rows * (3 * 16 + 8);
}

}  // namespace quantry::engine
