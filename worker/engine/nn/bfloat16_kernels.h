#pragma once

#include <cstdint>

namespace quantry::engine::simd {

// Kernels for CPUs that multiply bfloat16 (AVX512_BF16). Call only where HasBfloat16().
bool HasBfloat16();

// to[j] = from[j] as bfloat16, to nearest, ties to even; below 2^-126 it is 0.
void RoundToBfloat16(const float* from, int64_t count, uint16_t* to);
void WidenBfloat16(const uint16_t* from, int64_t count, float* to);

// simd_kernels.h's GatedSilu and GatedSiluSlope of gate and up in bfloat16, the slopes rounded to
// it.
void GatedSiluOf(const uint16_t* gate, const uint16_t* up, int64_t count, float* out);
void GatedSiluSlopeOf(const uint16_t* gate, const uint16_t* up, const float* slope, int64_t count,
                      uint16_t* gate_slope, uint16_t* up_slope);

// Two neighbours along the summed dimension, the first in the lower half.
using Pair = uint32_t;
constexpr int64_t PairsOf(int64_t count) { return (count + 1) / 2; }

// from [rows, columns], `stride` apart, rounded and paired; an odd one out meets 0.
// to [rows, PairsOf(columns)]: (i, 2 l) and (i, 2 l + 1)
void PairColumns(const float* from, int64_t stride, int64_t rows, int64_t columns, Pair* to);
// to [PairsOf(rows), columns]: (2 l, j) and (2 l + 1, j)
void PairRows(const float* from, int64_t stride, int64_t rows, int64_t columns, Pair* to);

// An operand whose pair (i, l) is data[i * row + l * column].
struct PairMatrix {
  const Pair* data;
  int64_t row;
  int64_t column;
};

// c[i * c_row + j] = (add ? c : 0) + sum over both halves of all l of a(i, l) b[l * b_row + j],
// i < m, j < n, l < pairs; sums in fp32.
void MultiplyAddPairs(int64_t m, int64_t n, int64_t pairs, PairMatrix a, const Pair* b,
                      int64_t b_row, float* c, int64_t c_row, bool add);

}  // namespace quantry::engine::simd
