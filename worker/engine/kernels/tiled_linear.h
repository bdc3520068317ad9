#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "worker/engine/quant/mixed_binary.h"

namespace quantry::engine {

// PackedLinear's product for a device that has no kernel of ours: ATen's
// operations alone. Bits, codes and gains lie on the device as they are stored,
// 1.6 bits a weight; a tile of output rows at a time is unpacked into signs and
// codes, multiplied and dropped, so W' never exists as a whole. With xs, xn and t
// as there,
//   y_i = s_i sum_j (q_ij - z_i) xs_j + A_i sum_j S_ij xn_j + C_i t
// in fp32; sums are ATen's, so the last digits depend on the device. Immutable,
// thread-safe.
class TiledLinear {
 public:
  // What unpacking a tile may take. More = fewer, larger products.
  static constexpr int64_t kTileBytes = int64_t{16} << 20;

  // bias: fp32 [out] or undefined. `tile_bytes` is for tests; a tile has one
  // row at least.
  TiledLinear(const MixedBinaryWeight& weight, const at::Tensor& bias, const at::Device& device,
              int64_t tile_bytes = kTileBytes);

  int64_t rows() const { return scales_.size(0); }
  int64_t columns() const { return salient_.size(0) + others_.size(0); }
  int64_t tile_rows() const { return tile_rows_; }
  // Of the weights and everything beside them.
  int64_t bytes() const;

  // x: [..., in] on the device -> fp32 [..., out]. A token with NaN or infinite
  // values gives NaN.
  at::Tensor Apply(const at::Tensor& x) const;

 private:
  at::Tensor salient_, others_;                     // int64 columns of codes_ and of signs_
  at::Tensor codes_, signs_;                        // uint8 [out, bytes]
  at::Tensor scales_, zeros_;                       // fp32 [out], of the codes
  at::Tensor row_gain_, row_offset_, column_gain_;  // fp32 A, C [out], r2 [others]
  at::Tensor bias_;                                 // fp32 [out]; zeros without one
  int64_t tile_rows_;
};

}  // namespace quantry::engine
