#pragma once

#include <ATen/ATen.h>

namespace quantry::engine {

struct BillmOptions {
  enum class Metric { kHessian, kMagnitude };
  enum class Domain { kSaliency, kWeights };
  Metric metric = Metric::kHessian;
  // Where both searches measure their error: the saliency itself (the authors'
  // code) or the weights (the paper's text).
  Domain domain = Domain::kSaliency;
  // Spread a block's error by the inverse of its triangle, not of its diagonal.
  bool exact_compensation = false;
  int64_t block_size = 128;    // columns
  int64_t salient_limit = 50;  // 1 .. limit - 1 salient columns a block are tried
};

// How the weights of one block of columns are told apart. The three masks
// cover it without overlap.
struct BillmSplit {
  at::Tensor salient;   // bool [c]: whole columns, binarized twice
  at::Tensor low;       // bool [n, c]: below the threshold
  at::Tensor high;      // bool [n, c]
  int64_t columns = 0;  // salient ones
  double threshold = 0;
  double column_error = 0;  // mean squared error of the column search, at its best
  double split_error = 0;   // of the threshold search, at its best
};

// Searches the split of a block (spec: baselines.md 4.2, steps 1 to 3): salient
// columns by the sum of their saliency, as many as give the smallest error;
// then one threshold for all rows out of 81 quantiles.
// Masks are undefined where the saliency is not finite.
//   weight: fp32 [n, c]; diagonal: fp32 [c], that of the Cholesky factor of the
//   inverse second moments (kHessian only).
BillmSplit SearchSplit(const at::Tensor& weight, const at::Tensor& diagonal,
                       const BillmOptions& options);

// The quantized block, fp32 [n, c] (step 4).
at::Tensor BinarizeSplit(const at::Tensor& weight, const BillmSplit& split);

}  // namespace quantry::engine
