#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace quantry::engine {

// int64, ascending, on the CPU: which of `columns` columns `salient` (of integers) leaves out.
at::Tensor ColumnsWithout(const at::Tensor& salient, int64_t columns);

// The weight of PTQ1.61 (spec: ptq161.md 3.2, 12): a few salient columns on a
// 4-bit grid, one a row; of every other column one sign a weight.
//   salient j (number t):    W[i, j] = (codes[i, t] - zeros[i]) * scales[i]
//   other j (number u):      W[i, j] = column_gain[u] * (S * row_gain[i] + row_offset[i]),
//                            S = signs[i, u] ? +1 : -1
// Columns of each kind are counted in ascending order of j. All CPU tensors.
// Gains may be negative and any of them 0. k may be m (no signs) and at least
// 0 (no codes).
struct MixedBinaryWeight {
  static constexpr int kCodeBits = 4;

  int64_t columns = 0;     // m
  at::Tensor salient;      // int32 [k], strictly ascending, in [0, m)
  at::Tensor codes;        // uint8 [n, k], 0 .. 15
  at::Tensor scales;       // fp32 [n], representable in fp16, > 0
  at::Tensor zeros;        // uint8 [n], 0 .. 15
  at::Tensor signs;        // uint8 [n, m - k], 0 or 1
  at::Tensor row_gain;     // A fp32 [n], representable in fp16
  at::Tensor row_offset;   // C fp32 [n], representable in fp16
  at::Tensor column_gain;  // r2 fp32 [m - k], representable in fp16

  int64_t rows() const { return scales.size(0); }
  int64_t salient_columns() const { return salient.size(0); }

  at::Tensor OtherColumns() const;  // those `salient` leaves out
  // fp32 [n, m]; the order of operations is the one above, each step rounded.
  at::Tensor Dequantize() const;
};

// Bits such a weight takes packed, the paper's way plus what it does not count
// (spec: ptq161.md 6): codes and signs, three fp16 and a nibble a row, an fp16
// a binary column, and the mask when this weight is the one that holds it.
constexpr int64_t MixedBinaryBits(int64_t rows, int64_t columns, int64_t salient, bool with_mask) {
  const int64_t others = columns - salient;
  return rows * (4 * salient + others) + rows * 52 + 16 * others + (with_mask ? columns : 0);
}

// Bytes of its packed tensors (docs/formats/quantry-container.md): the same,
// each row of codes and of signs, the zero points and the mask filled up to
// whole bytes.
constexpr int64_t MixedBinaryBytes(int64_t rows, int64_t columns, int64_t salient, bool with_mask) {
  const int64_t others = columns - salient;
  return rows * ((salient + 1) / 2 + (others + 7) / 8) + 6 * rows + (rows + 1) / 2 + 2 * others +
         (with_mask ? (columns + 7) / 8 : 0);
}

}  // namespace quantry::engine
