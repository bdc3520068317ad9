#include "worker/engine/methods/billm/columns.h"

#include <algorithm>
#include <limits>

namespace quantry::engine {
namespace {

// 3.00 bits at 128 columns a block, plus 1/n (spec: baselines.md 0.3).
static_assert(BillmBits(4096, 4096, 128) == 3 * int64_t{4096} * 4096 + 4096);

}  // namespace

BinarizedColumns BinarizeColumns(const at::Tensor& weight, const at::Tensor& upper,
                                 const BillmOptions& options) {
  BillmOptions own = options;
  if (!upper.defined()) own.metric = BillmOptions::Metric::kMagnitude;
  BinarizedColumns result;
  result.values = at::empty_like(weight);
  at::Tensor left = weight.clone();
  const int64_t columns = weight.size(1);
  for (int64_t first = 0; first < columns; first += options.block_size) {
    const int64_t count = std::min(options.block_size, columns - first);
    const at::Tensor block = left.narrow(1, first, count);
    const at::Tensor triangle =
        upper.defined() ? upper.narrow(0, first, count).narrow(1, first, count) : at::Tensor();
    const at::Tensor diagonal = upper.defined() ? triangle.diagonal() : at::Tensor();
    const BillmSplit split = SearchSplit(block, diagonal, own);
    if (!split.low.defined()) {
      result.values.fill_(std::numeric_limits<float>::quiet_NaN());
      return result;
    }
    const at::Tensor values = BinarizeSplit(block, split);
    result.values.narrow(1, first, count).copy_(values);
    result.salient += split.columns;
    if (!upper.defined()) continue;
    const at::Tensor error = block - values;
    at::Tensor scaled = error / diagonal;
    result.loss += 0.5 * scaled.square().sum(at::kDouble).item<double>();
    const int64_t rest = columns - first - count;
    if (rest == 0) continue;
    if (options.exact_compensation) {
      scaled = at::linalg_solve_triangular(triangle, error, /*upper=*/true, /*left=*/false);
    }
    left.narrow(1, first + count, rest)
        .sub_(at::mm(scaled, upper.narrow(0, first, count).narrow(1, first + count, rest)));
  }
  return result;
}

}  // namespace quantry::engine
