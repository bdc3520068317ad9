#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "worker/engine/kernels/bit_tiles.h"
#include "worker/engine/quant/mixed_binary.h"

namespace quantry::engine {

// y = x W'^T + bias for a PTQ1.61 weight that is never built (spec: ptq161.md
// 12): with xs the salient activations, xn the others times the column gain,
// u = sum(xs), t = sum(xn),
//   y_i = s_i (sum_j q_ij xs_j - z_i u) + A_i (2 sum_{bit_ij = 1} xn_j - t) + C_i t
// Both sums are BitKernel's, over one plane of signs and four of codes, so the
// weights are read as they are stored: 1.6 bits each. Exact but for rounding
// x once (FixedPoint) and y once. CPU only: TiledLinear is for other devices.
// Immutable, thread-safe.
class PackedLinear {
 public:
  // bias: fp32 [out] or undefined. `kernel` is for tests.
  explicit PackedLinear(const MixedBinaryWeight& weight, const at::Tensor& bias = {},
                        const BitKernel& kernel = BestBitKernel());

  int64_t rows() const { return codes_.rows(); }
  int64_t columns() const { return columns_; }
  // Of the weights and everything beside them.
  int64_t bytes() const;

  // x: fp32 [..., in] -> fp32 [..., out]. The same bits for every thread count
  // and however the tokens are batched. A token with NaN or infinite values
  // gives NaN.
  at::Tensor Apply(const at::Tensor& x) const;

 private:
  struct Tables;
  void Prepare(const float* x, int64_t tokens, Tables* tables) const;
  void Multiply(const Tables& tables, int64_t first, int64_t last, float* y) const;

  const BitKernel* kernel_;
  int64_t columns_;
  std::vector<int32_t> salient_;  // columns of codes_
  std::vector<int32_t> others_;   // columns of signs_
  BitTiles codes_;
  BitTiles signs_;
  std::vector<float> scales_, zeros_;                       // [out], of the codes
  std::vector<float> row_gain_, row_offset_, column_gain_;  // A, C [out], r2 [others]
  std::vector<float> bias_;                                 // [out]; zeros without one
};

}  // namespace quantry::engine
