#include "worker/engine/methods/billm/split.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/engine/base/non_finite.h"
#include "worker/engine/methods/billm/residual.h"

namespace quantry::engine {
namespace {

constexpr int kFirstPercent = 10;
constexpr int kLastPercent = 90;

at::Tensor Binarized(const at::Tensor& x, const at::Tensor& mask, int order) {
  return BinarizeResidual(x, mask, order).values;
}

double MeanSquare(const at::Tensor& error) { return error.square().mean().item<double>(); }

// The power of two at or below the largest value: divided by it, values keep
// their order and digits, and their squares do not overflow.
double UnitOf(const at::Tensor& x) {
  const auto most = x.abs().max().item<double>();
  return most > 0 ? std::ldexp(1.0, std::max(std::ilogb(most), -126)) : 1.0;
}

// Steps 1 and 2: which columns are salient. `x` is what errors are measured on.
void SearchColumns(const at::Tensor& x, const at::Tensor& saliency, int64_t limit,
                   BillmSplit* split) {
  const int64_t columns = x.size(1);
  const at::Tensor order = at::argsort(saliency.abs().sum(0), /*stable=*/true, /*dim=*/0,
                                       /*descending=*/true);
  split->column_error = std::numeric_limits<double>::infinity();
  at::Tensor salient = at::zeros({columns}, x.options().dtype(at::kBool));
  split->salient = salient.clone();
  for (int64_t count = 1; count < std::min(limit, columns); ++count) {
    salient[order[count - 1].item<int64_t>()] = true;
    const at::Tensor mask = salient.expand(x.sizes());
    const double error = MeanSquare(x - Binarized(x, mask, 2) - Binarized(x, ~mask, 2));
    if (error >= split->column_error) continue;
    split->column_error = error;
    split->columns = count;
    split->salient = salient.clone();
  }
}

// Step 3: low and high among the other columns.
void SearchThreshold(const at::Tensor& x, BillmSplit* split) {
  const at::Tensor salient = split->salient.expand(x.sizes());
  const at::Tensor size = x.abs().masked_fill(salient, 0.0);
  const at::Tensor left = x - Binarized(x, salient, 2);
  std::vector<double> shares;
  for (int percent = kFirstPercent; percent <= kLastPercent; ++percent) {
    shares.push_back(percent / 100.0);
  }
  const at::Tensor flat = std::get<0>(size.flatten().sort());
  split->split_error = std::numeric_limits<double>::infinity();
  for (const double share : shares) {
    // The linear interpolation of quantiles.
    const double position = share * static_cast<double>(flat.size(0) - 1);
    const auto below = static_cast<int64_t>(position);
    const auto low_value = flat[below].item<float>();
    const auto high_value = flat[std::min(below + 1, flat.size(0) - 1)].item<float>();
    const float threshold = low_value + static_cast<float>(position - static_cast<double>(below)) *
                                            (high_value - low_value);
    const at::Tensor low = size.lt(threshold).logical_and_(~salient);
    const at::Tensor high = size.ge(threshold).logical_and_(~salient);
    const double error = MeanSquare(left - Binarized(x, low, 1) - Binarized(x, high, 1));
    if (error >= split->split_error) continue;
    split->split_error = error;
    split->threshold = threshold;
    split->low = low;
    split->high = high;
  }
}

}  // namespace

BillmSplit SearchSplit(const at::Tensor& weight, const at::Tensor& diagonal,
                       const BillmOptions& options) {
  const at::Tensor saliency = options.metric == BillmOptions::Metric::kHessian
                                  ? weight.square() / diagonal.square()
                                  : weight;
  const at::Tensor& x = options.domain == BillmOptions::Domain::kSaliency ? saliency : weight;
  BillmSplit split;
  if (!AllFinite(saliency)) return split;
  const double unit = UnitOf(x);
  const at::Tensor scaled = x / unit;
  SearchColumns(scaled, saliency / UnitOf(saliency), options.salient_limit, &split);
  SearchThreshold(scaled, &split);
  split.threshold *= unit;
  split.column_error *= unit * unit;
  split.split_error *= unit * unit;
  return split;
}

at::Tensor BinarizeSplit(const at::Tensor& weight, const BillmSplit& split) {
  return Binarized(weight, split.low, 1)
      .add_(Binarized(weight, split.high, 1))
      .add_(Binarized(weight, split.salient.expand(weight.sizes()), 2));
}

}  // namespace quantry::engine
