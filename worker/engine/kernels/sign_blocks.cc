#include "worker/engine/kernels/sign_blocks.h"

#include <algorithm>

#include "worker/engine/base/avx2.h"

namespace quantry::engine {

#if defined(__x86_64__) && defined(__GNUC__)

namespace {

constexpr int kVectors = kSignTokens / 8;
constexpr int kSums = 1 << kSignsPerCode;
// Groups of columns whose sums exist at once: 24 KB, less than a first-level cache.
constexpr int64_t kGroupsAtOnce = 12;

using Vectors = __m256[kVectors];

// Entry `lane` is token 8 v + lane; columns j .. j + 3 of the block, zeros beyond
// its tokens and columns.
QUANTRY_AVX2_INLINE void LoadColumns(const TokenRows& x, int v, int64_t j, int64_t left,
                                     __m256 out[kSignsPerCode]) {
  const __m128i kept = _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(std::min<int64_t>(left, 4))),
                                       _mm_setr_epi32(0, 1, 2, 3));
  __m256 rows[4];
  for (int s = 0; s < 4; ++s) {
    __m128 halves[2];
    for (int64_t h = 0; h < 2; ++h) {
      const int64_t token = int64_t{v} * 8 + h * 4 + s;
      const float* from = x.data + token * x.row + j;
      halves[h] = token >= x.count ? _mm_setzero_ps()
                  : left >= 4      ? _mm_loadu_ps(from)
                                   : _mm_maskload_ps(from, kept);
    }
    rows[s] = _mm256_set_m128(halves[1], halves[0]);
  }
  const __m256 a = _mm256_unpacklo_ps(rows[0], rows[1]), b = _mm256_unpackhi_ps(rows[0], rows[1]);
  const __m256 c = _mm256_unpacklo_ps(rows[2], rows[3]), d = _mm256_unpackhi_ps(rows[2], rows[3]);
  out[0] = _mm256_shuffle_ps(a, c, 0x44);
  out[1] = _mm256_shuffle_ps(a, c, 0xEE);
  out[2] = _mm256_shuffle_ps(b, d, 0x44);
  out[3] = _mm256_shuffle_ps(b, d, 0xEE);
}

// The 16 signed sums of four columns to sums[code * kSignTokens]; returns the
// one of pluses.
QUANTRY_AVX2_INLINE __m256 StoreSums(const __m256 x[kSignsPerCode], float* sums) {
  const __m256 zero = _mm256_setzero_ps();
  const __m256 low_sum = _mm256_add_ps(x[0], x[1]), high_sum = _mm256_add_ps(x[2], x[3]);
  const __m256 low_gap = _mm256_sub_ps(x[0], x[1]), high_gap = _mm256_sub_ps(x[2], x[3]);
  const __m256 low[4] = {_mm256_sub_ps(zero, low_sum), low_gap, _mm256_sub_ps(zero, low_gap),
                         low_sum};
  const __m256 high[4] = {_mm256_sub_ps(zero, high_sum), high_gap, _mm256_sub_ps(zero, high_gap),
                          high_sum};
  for (int64_t h = 0; h < 4; ++h) {
    for (int64_t l = 0; l < 4; ++l) {
      _mm256_storeu_ps(sums + (h * 4 + l) * kSignTokens, _mm256_add_ps(high[h], low[l]));
    }
  }
  return _mm256_add_ps(high_sum, low_sum);
}

// tile[row] (+)= the sums its codes `first` .. `first + groups` ask for.
QUANTRY_AVX2_INLINE void AddSums(const SignCodes& signs, int64_t first, int64_t groups,
                                 const float* sums, float* tile) {
  const int64_t stride = signs.groups();
  const uint8_t* codes = signs.codes + first;
  for (int64_t i = 0; i < signs.rows; ++i, codes += stride, tile += kSignTokens) {
    Vectors row;
    for (int64_t v = 0; v < kVectors; ++v) {
      row[v] = first == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(tile + v * 8);
    }
    const float* table = sums;
    for (int64_t g = 0; g < groups; ++g, table += int64_t{kSums} * kSignTokens) {
      const float* at = table + static_cast<int64_t>(codes[g]) * kSignTokens;
      for (int64_t v = 0; v < kVectors; ++v)
        row[v] = _mm256_add_ps(row[v], _mm256_loadu_ps(at + v * 8));
    }
    for (int64_t v = 0; v < kVectors; ++v) _mm256_storeu_ps(tile + v * 8, row[v]);
  }
}

// Rows i .. i + 7 of a tile for tokens 8 v .. 8 v + 7, turned: out[token], lanes are rows.
QUANTRY_AVX2_INLINE void LoadTurned(const float* tile, int64_t i, int64_t v, __m256 out[8]) {
  __m256 x[8], y[8];
  for (int64_t r = 0; r < 8; ++r) x[r] = _mm256_loadu_ps(tile + (i + r) * kSignTokens + v * 8);
  for (int64_t r = 0; r < 8; r += 2) {
    y[r] = _mm256_unpacklo_ps(x[r], x[r + 1]);
    y[r + 1] = _mm256_unpackhi_ps(x[r], x[r + 1]);
  }
  for (int64_t r = 0; r < 8; r += 4) {
    x[r] = _mm256_shuffle_ps(y[r], y[r + 2], 0x44);
    x[r + 1] = _mm256_shuffle_ps(y[r], y[r + 2], 0xEE);
    x[r + 2] = _mm256_shuffle_ps(y[r + 1], y[r + 3], 0x44);
    x[r + 3] = _mm256_shuffle_ps(y[r + 1], y[r + 3], 0xEE);
  }
  for (int64_t r = 0; r < 4; ++r) {
    out[r] = _mm256_permute2f128_ps(x[r], x[r + 4], 0x20);
    out[r + 4] = _mm256_permute2f128_ps(x[r], x[r + 4], 0x31);
  }
}

// y += A tile^T + total C^T.
QUANTRY_AVX2_INLINE void AddToOutputs(const SignScales& scales, const float* tile,
                                      const float* total, int64_t rows, const TokenRows& y) {
  for (int64_t i = 0; i < rows; i += 8) {
    const int64_t left = rows - i;
    const __m256 gain = Load(scales.gain + i, left), offset = Load(scales.offset + i, left);
    for (int64_t v = 0; v < kVectors; ++v) {
      __m256 turned[8];
      LoadTurned(tile, i, v, turned);
      const int64_t tokens = std::min<int64_t>(8, y.count - v * 8);
      for (int64_t s = 0; s < tokens; ++s) {
        const int64_t token = v * 8 + s;
        float* to = y.data + token * y.row + i;
        __m256 sum = _mm256_fmadd_ps(gain, turned[s], Load(to, left));
        sum = _mm256_fmadd_ps(offset, _mm256_set1_ps(total[token]), sum);
        Store(to, left, sum);
      }
    }
  }
}

// With u = tile^T + shift: dL/dr2 = sum of u x, dL/dx = u r2.
QUANTRY_AVX2_INLINE void InputSlopes(const SignScales& scales, const float* tile,
                                     const float* shift, int64_t columns, const TokenRows& x,
                                     const TokenRows& x_slope, float* column_slope) {
  for (int64_t j = 0; j < columns; j += 8) {
    const int64_t left = columns - j;
    const __m256 column = Load(scales.column + j, left);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t v = 0; v < kVectors; ++v) {
      __m256 turned[8];
      LoadTurned(tile, j, v, turned);
      const int64_t tokens = std::min<int64_t>(8, x.count - v * 8);
      for (int64_t s = 0; s < tokens; ++s) {
        const int64_t token = v * 8 + s;
        const __m256 u = _mm256_add_ps(turned[s], _mm256_set1_ps(shift[token]));
        sum = _mm256_fmadd_ps(u, Load(x.data + token * x.row + j, left), sum);
        if (x_slope.data != nullptr) {
          Store(x_slope.data + token * x_slope.row + j, left, _mm256_mul_ps(u, column));
        }
      }
    }
    Store(column_slope + j, left, sum);
  }
}

// One group's columns 8 v of x, times r2, to its sums; adds them to `total`.
QUANTRY_AVX2_INLINE void ScaledSums(const SignScales& scales, const TokenRows& x, int64_t j,
                                    int64_t left, float* sums, float* total) {
  for (int64_t v = 0; v < kVectors; ++v) {
    __m256 columns[kSignsPerCode];
    LoadColumns(x, v, j, left, columns);
    for (int64_t b = 0; b < kSignsPerCode && b < left; ++b) {
      columns[b] = _mm256_mul_ps(columns[b], _mm256_broadcast_ss(scales.column + j + b));
    }
    const __m256 all = StoreSums(columns, sums + v * 8);
    _mm256_storeu_ps(total + v * 8, _mm256_add_ps(_mm256_loadu_ps(total + v * 8), all));
  }
}

// Columns i .. i + 3 of g: their gradients of A and C, C g to `shift`, A g to the sums.
QUANTRY_AVX2_INLINE void SlopeSums(const SignScales& scales, const TokenRows& g, int64_t i,
                                   int64_t left, const float* tile, const float* total, float* sums,
                                   float* shift, const SignSlopes& slopes) {
  const int64_t count = std::min<int64_t>(left, kSignsPerCode);
  __m256 gain[kSignsPerCode], offset[kSignsPerCode];
  for (int64_t b = 0; b < kSignsPerCode; ++b) gain[b] = offset[b] = _mm256_setzero_ps();
  for (int64_t v = 0; v < kVectors; ++v) {
    __m256 columns[kSignsPerCode];
    LoadColumns(g, v, i, left, columns);
    __m256 shifted = _mm256_loadu_ps(shift + v * 8);
    const __m256 sum = _mm256_loadu_ps(total + v * 8);
    for (int64_t b = 0; b < count; ++b) {
      const __m256 product = _mm256_loadu_ps(tile + (i + b) * kSignTokens + v * 8);
      gain[b] = _mm256_fmadd_ps(columns[b], product, gain[b]);
      offset[b] = _mm256_fmadd_ps(columns[b], sum, offset[b]);
      shifted = _mm256_fmadd_ps(columns[b], _mm256_broadcast_ss(scales.offset + i + b), shifted);
      columns[b] = _mm256_mul_ps(columns[b], _mm256_broadcast_ss(scales.gain + i + b));
    }
    _mm256_storeu_ps(shift + v * 8, shifted);
    StoreSums(columns, sums + v * 8);
  }
  for (int64_t b = 0; b < count; ++b) {
    slopes.gain[i + b] = Sum8(gain[b]);
    slopes.offset[i + b] = Sum8(offset[b]);
  }
}

}  // namespace

QUANTRY_AVX2 void SignForwardBlock(const SignCodes& signs, const SignScales& scales,
                                   const TokenRows& x, const TokenRows& y, float* tile,
                                   float* total) {
  alignas(64) float sums[kGroupsAtOnce * kSums * kSignTokens];
  std::fill(total, total + kSignTokens, 0.0F);
  for (int64_t first = 0; first < signs.groups(); first += kGroupsAtOnce) {
    const int64_t groups = std::min(kGroupsAtOnce, signs.groups() - first);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t j = (first + g) * kSignsPerCode;
      ScaledSums(scales, x, j, signs.columns - j, sums + g * kSums * kSignTokens, total);
    }
    AddSums(signs, first, groups, sums, tile);
  }
  AddToOutputs(scales, tile, total, signs.rows, y);
}

QUANTRY_AVX2 void SignBackwardBlock(const SignCodes& signs, const SignScales& scales,
                                    const TokenRows& g, const TokenRows& x, const float* tile,
                                    const float* total, float* scratch, const TokenRows& x_slope,
                                    const SignSlopes& slopes) {
  alignas(64) float sums[kGroupsAtOnce * kSums * kSignTokens];
  alignas(64) float shift[kSignTokens] = {};
  for (int64_t first = 0; first < signs.groups(); first += kGroupsAtOnce) {
    const int64_t groups = std::min(kGroupsAtOnce, signs.groups() - first);
    for (int64_t k = 0; k < groups; ++k) {
      const int64_t i = (first + k) * kSignsPerCode;
      SlopeSums(scales, g, i, signs.columns - i, tile, total, sums + k * kSums * kSignTokens, shift,
                slopes);
    }
    AddSums(signs, first, groups, sums, scratch);
  }
  InputSlopes(scales, scratch, shift, signs.rows, x, x_slope, slopes.column);
}

#else

void SignForwardBlock(const SignCodes&, const SignScales&, const TokenRows&, const TokenRows&,
                      float*, float*) {}
void SignBackwardBlock(const SignCodes&, const SignScales&, const TokenRows&, const TokenRows&,
                       const float*, const float*, float*, const TokenRows&, const SignSlopes&) {}

#endif

}  // namespace quantry::engine
