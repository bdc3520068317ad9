#include "worker/engine/nn/bfloat16_kernels.h"

#include <algorithm>

#include "worker/engine/base/avx2.h"

namespace quantry::engine::simd {

#if defined(__x86_64__) && defined(__GNUC__)

// One binary serves every x86-64: chosen at run time.
#define QUANTRY_BFLOAT16 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,fma"), optimize("O3")))
#define QUANTRY_BFLOAT16_INLINE \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,fma"), always_inline)) inline

bool HasBfloat16() {
  static const bool has = __builtin_cpu_supports("avx512bf16") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has;
}

namespace {

constexpr int64_t kLanes = 16;
constexpr __mmask16 kAll = 0xFFFF;

// The first `count` (1 or more) lanes.
__mmask16 LanesOf(int64_t count) {
  return count >= kLanes ? kAll : static_cast<__mmask16>((1U << count) - 1);
}

QUANTRY_BFLOAT16_INLINE __m256i Rounded(__mmask16 lanes, const float* from) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, from)));
}

QUANTRY_BFLOAT16_INLINE __m512i InLowerHalf(__m256i x) {
  return _mm512_maskz_cvtepu16_epi32(kAll, x);
}

QUANTRY_BFLOAT16_INLINE __m512i InUpperHalf(__m256i x) {
  return _mm512_maskz_slli_epi32(kAll, InLowerHalf(x), 16);
}

constexpr int64_t kHalf = 8;
__mmask8 HalfLanesOf(int64_t count) {
  return count >= kHalf ? 0xFF : static_cast<__mmask8>((1U << count) - 1);
}

QUANTRY_BFLOAT16_INLINE __m256 Widened(__mmask8 lanes, const uint16_t* from) {
  const __m128i narrow = _mm_maskz_loadu_epi16(lanes, from);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
}

QUANTRY_BFLOAT16_INLINE void StoreRounded(uint16_t* to, __mmask8 lanes, __m256 x) {
  _mm_mask_storeu_epi16(to, lanes, reinterpret_cast<__m128i>(_mm256_cvtneps_pbh(x)));
}

// kRows rows of c and kVectors vectors, `lanes` of the last one.
template <int kRows, int kVectors>
QUANTRY_BFLOAT16_INLINE void PairTile(int64_t pairs, PairMatrix a, const Pair* b, int64_t b_row,
                                      float* c, int64_t c_row, bool add, __mmask16 lanes) {
  const auto kept = [&](int j) { return j + 1 < kVectors ? kAll : lanes; };
  __m512 sums[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      sums[i][j] =
          add ? _mm512_maskz_loadu_ps(kept(j), c + i * c_row + j * kLanes) : _mm512_setzero_ps();
    }
  }
  for (int64_t l = 0; l < pairs; ++l) {
    __m512bh values[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      values[j] =
          reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi32(kept(j), b + l * b_row + j * kLanes));
    }
    for (int i = 0; i < kRows; ++i) {
      const auto factor = reinterpret_cast<__m512bh>(
          _mm512_set1_epi32(static_cast<int>(a.data[i * a.row + l * a.column])));
      for (int j = 0; j < kVectors; ++j) {
        sums[i][j] = _mm512_dpbf16_ps(sums[i][j], factor, values[j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      _mm512_mask_storeu_ps(c + i * c_row + j * kLanes, kept(j), sums[i][j]);
    }
  }
}

// kRows rows of c, all columns.
template <int kRows>
QUANTRY_BFLOAT16 void PairedRows(int64_t n, int64_t pairs, PairMatrix a, const Pair* b,
                                 int64_t b_row, float* c, int64_t c_row, bool add) {
  int64_t j = 0;
  for (; j + kLanes < n; j += 2 * kLanes) {
    PairTile<kRows, 2>(pairs, a, b + j, b_row, c + j, c_row, add, LanesOf(n - j - kLanes));
  }
  if (j < n) PairTile<kRows, 1>(pairs, a, b + j, b_row, c + j, c_row, add, LanesOf(n - j));
}

}  // namespace

QUANTRY_BFLOAT16 void RoundToBfloat16(const float* from, int64_t count, uint16_t* to) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const __mmask16 lanes = LanesOf(count - j);
    _mm256_mask_storeu_epi16(to + j, lanes, Rounded(lanes, from + j));
  }
}

QUANTRY_BFLOAT16 void WidenBfloat16(const uint16_t* from, int64_t count, float* to) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const __mmask16 lanes = LanesOf(count - j);
    const __m256i narrow = _mm256_maskz_loadu_epi16(lanes, from + j);
    _mm512_mask_storeu_epi32(to + j, lanes, InUpperHalf(narrow));
  }
}

QUANTRY_BFLOAT16 void GatedSiluOf(const uint16_t* gate, const uint16_t* up, int64_t count,
                                  float* out) {
  const __m256 one = _mm256_set1_ps(1.0F);
  for (int64_t j = 0; j < count; j += kHalf) {
    const __mmask8 lanes = HalfLanesOf(count - j);
    const __m256 g = Widened(lanes, gate + j);
    const __m256 silu =
        _mm256_div_ps(g, _mm256_add_ps(one, Exp8(_mm256_sub_ps(_mm256_setzero_ps(), g))));
    _mm256_mask_storeu_ps(out + j, lanes, _mm256_mul_ps(silu, Widened(lanes, up + j)));
  }
}

QUANTRY_BFLOAT16 void GatedSiluSlopeOf(const uint16_t* gate, const uint16_t* up, const float* slope,
                                       int64_t count, uint16_t* gate_slope, uint16_t* up_slope) {
  const __m256 one = _mm256_set1_ps(1.0F);
  for (int64_t j = 0; j < count; j += kHalf) {
    const __mmask8 lanes = HalfLanesOf(count - j);
    const __m256 g = Widened(lanes, gate + j), u = Widened(lanes, up + j);
    const __m256 s = _mm256_maskz_loadu_ps(lanes, slope + j);
    const __m256 e = Exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));
    const __m256 sigmoid = _mm256_div_ps(one, _mm256_add_ps(one, e));
    const __m256 along =
        _mm256_mul_ps(sigmoid, _mm256_fmadd_ps(g, _mm256_sub_ps(one, sigmoid), one));
    StoreRounded(gate_slope + j, lanes, _mm256_mul_ps(_mm256_mul_ps(s, u), along));
    StoreRounded(up_slope + j, lanes, _mm256_mul_ps(s, _mm256_mul_ps(g, sigmoid)));
  }
}

QUANTRY_BFLOAT16 void PairColumns(const float* from, int64_t stride, int64_t rows, int64_t columns,
                                  Pair* to) {
  const int64_t pairs = PairsOf(columns);
  for (int64_t i = 0; i < rows; ++i) {
    auto* halves = reinterpret_cast<uint16_t*>(to + i * pairs);
    RoundToBfloat16(from + i * stride, columns, halves);
    if (columns % 2 != 0) halves[columns] = 0;
  }
}

QUANTRY_BFLOAT16 void PairRows(const float* from, int64_t stride, int64_t rows, int64_t columns,
                               Pair* to) {
  for (int64_t i = 0; i < rows; i += 2, from += 2 * stride, to += columns) {
    for (int64_t j = 0; j < columns; j += kLanes) {
      const __mmask16 lanes = LanesOf(columns - j);
      __m512i pair = InLowerHalf(Rounded(lanes, from + j));
      if (i + 1 < rows) {
        pair = _mm512_or_epi32(pair, InUpperHalf(Rounded(lanes, from + stride + j)));
      }
      _mm512_mask_storeu_epi32(to + j, lanes, pair);
    }
  }
}

QUANTRY_BFLOAT16 void MultiplyAddPairs(int64_t m, int64_t n, int64_t pairs, PairMatrix a,
                                       const Pair* b, int64_t b_row, float* c, int64_t c_row,
                                       bool add) {
  const auto from = [&](int64_t i) { return PairMatrix{a.data + i * a.row, a.row, a.column}; };
  int64_t i = 0;
  for (; i + 8 <= m; i += 8) {
    PairedRows<8>(n, pairs, from(i), b, b_row, c + i * c_row, c_row, add);
  }
  for (; i + 2 <= m; i += 2) {
    PairedRows<2>(n, pairs, from(i), b, b_row, c + i * c_row, c_row, add);
  }
  for (; i < m; ++i) PairedRows<1>(n, pairs, from(i), b, b_row, c + i * c_row, c_row, add);
}

#else

bool HasBfloat16() { return false; }
void RoundToBfloat16(const float*, int64_t, uint16_t*) {}
void WidenBfloat16(const uint16_t*, int64_t, float*) {}
void GatedSiluOf(const uint16_t*, const uint16_t*, int64_t, float*) {}
void GatedSiluSlopeOf(const uint16_t*, const uint16_t*, const float*, int64_t, uint16_t*,
                      uint16_t*) {}
void PairColumns(const float*, int64_t, int64_t, int64_t, Pair*) {}
void PairRows(const float*, int64_t, int64_t, int64_t, Pair*) {}
void MultiplyAddPairs(int64_t, int64_t, int64_t, PairMatrix, const Pair*, int64_t, float*, int64_t,
                      bool) {}

#endif

}  // namespace quantry::engine::simd
