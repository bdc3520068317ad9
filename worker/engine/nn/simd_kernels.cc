#include "worker/engine/nn/simd_kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/engine/base/avx2.h"

namespace quantry::engine::simd {

#if defined(__x86_64__) && defined(__GNUC__)

bool Available() { return HasAvx2(); }

namespace {

constexpr int64_t kVector = 8;  // floats

// Sets the lanes beyond `left` to 0.
QUANTRY_AVX2_INLINE __m256 Keep(int64_t left, __m256 x) {
  return left >= 8 ? x : _mm256_and_ps(x, _mm256_castsi256_ps(Lanes(left)));
}

// Rows x (8 Columns) of c, whole vectors or the lanes of `mask`.
template <int kRows, int kColumns, bool kMasked>
QUANTRY_AVX2_INLINE void Tile(int64_t k, Matrix a, const float* b, int64_t b_row, float* c,
                              int64_t c_row, bool add, __m256i mask) {
  __m256 sums[kRows][kColumns];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      float* at = c + i * c_row + j * kVector;
      sums[i][j] = !add      ? _mm256_setzero_ps()
                   : kMasked ? _mm256_maskload_ps(at, mask)
                             : _mm256_loadu_ps(at);
    }
  }
  for (int64_t l = 0; l < k; ++l) {
    __m256 values[kColumns];
    for (int j = 0; j < kColumns; ++j) {
      const float* at = b + l * b_row + j * kVector;
      values[j] = kMasked ? _mm256_maskload_ps(at, mask) : _mm256_loadu_ps(at);
    }
    for (int i = 0; i < kRows; ++i) {
      const __m256 factor = _mm256_broadcast_ss(a.data + i * a.row + l * a.column);
      for (int j = 0; j < kColumns; ++j) {
        sums[i][j] = _mm256_fmadd_ps(factor, values[j], sums[i][j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      float* at = c + i * c_row + j * kVector;
      if (kMasked) {
        _mm256_maskstore_ps(at, mask, sums[i][j]);
      } else {
        _mm256_storeu_ps(at, sums[i][j]);
      }
    }
  }
}

// kRows rows of c, all columns.
template <int kRows>
QUANTRY_AVX2 void Rows(int64_t n, int64_t k, Matrix a, const float* b, int64_t b_row, float* c,
                       int64_t c_row, bool add) {
  const __m256i none = _mm256_setzero_si256();
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) {
    Tile<kRows, 2, false>(k, a, b + j, b_row, c + j, c_row, add, none);
  }
  for (; j + 8 <= n; j += 8) {
    Tile<kRows, 1, false>(k, a, b + j, b_row, c + j, c_row, add, none);
  }
  if (j < n) Tile<kRows, 1, true>(k, a, b + j, b_row, c + j, c_row, add, Lanes(n - j));
}

}  // namespace

QUANTRY_AVX2 void MultiplyAdd(int64_t m, int64_t n, int64_t k, Matrix a, const float* b,
                              int64_t b_row, float* c, int64_t c_row, bool add) {
  int64_t i = 0;
  for (; i + 6 <= m; i += 6) {
    Rows<6>(n, k, {a.data + i * a.row, a.row, a.column}, b, b_row, c + i * c_row, c_row, add);
  }
  for (; i + 2 <= m; i += 2) {
    Rows<2>(n, k, {a.data + i * a.row, a.row, a.column}, b, b_row, c + i * c_row, c_row, add);
  }
  for (; i < m; ++i) {
    Rows<1>(n, k, {a.data + i * a.row, a.row, a.column}, b, b_row, c + i * c_row, c_row, add);
  }
}

QUANTRY_AVX2 float ExpRow(float* row, int64_t count, float scale, float* largest) {
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < count; ++j) top = std::max(top, row[j]);
  *largest = top;
  const __m256 factor = _mm256_set1_ps(scale);
  const __m256 shift = _mm256_set1_ps(top);
  __m256 sums = _mm256_setzero_ps();
  for (int64_t j = 0; j < count; j += 8) {
    const __m256 x = Load(row + j, count - j);
    const __m256 e = Keep(count - j, Exp8(_mm256_mul_ps(_mm256_sub_ps(x, shift), factor)));
    Store(row + j, count - j, e);
    sums = _mm256_add_ps(sums, e);
  }
  return Sum8(sums);
}

QUANTRY_AVX2 void ExpShifted(float* row, int64_t count, float scale, float shift) {
  const __m256 factor = _mm256_set1_ps(scale);
  const __m256 less = _mm256_set1_ps(shift);
  for (int64_t j = 0; j < count; j += 8) {
    const __m256 x = Load(row + j, count - j);
    Store(row + j, count - j, Exp8(_mm256_mul_ps(_mm256_sub_ps(x, less), factor)));
  }
}

QUANTRY_AVX2 void Scale(float* row, int64_t count, float factor) {
  for (int64_t j = 0; j < count; ++j) row[j] *= factor;
}

QUANTRY_AVX2 float Dot(const float* a, const float* b, int64_t count) {
  __m256 sums = _mm256_setzero_ps();
  for (int64_t j = 0; j < count; j += 8) {
    sums = _mm256_fmadd_ps(Load(a + j, count - j), Load(b + j, count - j), sums);
  }
  return Sum8(sums);
}

QUANTRY_AVX2 float SquaredDistance(const float* a, const float* b, int64_t count) {
  __m256 sums = _mm256_setzero_ps();
  for (int64_t j = 0; j < count; j += 8) {
    const __m256 apart = _mm256_sub_ps(Load(a + j, count - j), Load(b + j, count - j));
    sums = _mm256_fmadd_ps(apart, apart, sums);
  }
  return Sum8(sums);
}

QUANTRY_AVX2 void SoftmaxSlope(const float* probability, float* gradient, int64_t count, float mean,
                               float scale) {
  for (int64_t j = 0; j < count; ++j) {
    gradient[j] = probability[j] * (gradient[j] - mean) * scale;
  }
}

QUANTRY_AVX2 void MultiplyScaled(const float* a, const float* b, int64_t count, float factor,
                                 float* out) {
  for (int64_t j = 0; j < count; ++j) out[j] = a[j] * b[j] * factor;
}

QUANTRY_AVX2 void AddScaled(const float* a, int64_t count, float factor, float* out) {
  for (int64_t j = 0; j < count; ++j) out[j] += a[j] * factor;
}

QUANTRY_AVX2 void WeightedSum(Weighted a, Weighted b, Weighted c, int64_t count, float* out) {
  for (int64_t j = 0; j < count; ++j) {
    out[j] = a.row[j] * a.factor + b.row[j] * b.factor + c.row[j] * c.factor;
  }
}

namespace {

// Eight rows of eight to eight columns.
QUANTRY_AVX2_INLINE void Transpose8(const float* from, int64_t stride, float* to, int64_t to_row) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * stride);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

}  // namespace

QUANTRY_AVX2 void Transpose(const float* from, int64_t stride, int64_t rows, int64_t columns,
                            float* to) {
  const int64_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
  for (int64_t r = 0; r < whole_rows; r += 8) {
    for (int64_t c = 0; c < whole_columns; c += 8) {
      Transpose8(from + r * stride + c, stride, to + c * rows + r, rows);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) {
      to[c * rows + r] = from[r * stride + c];
    }
  }
}

QUANTRY_AVX2 void RotateRow(const float* x, const float* cos, const float* sin, int64_t dim,
                            float sign, float* __restrict__ out) {
  const int64_t half = dim / 2;
  for (int64_t j = 0; j < half; ++j) out[j] = x[j] * cos[j] - sign * x[j + half] * sin[j];
  for (int64_t j = half; j < dim; ++j) out[j] = x[j] * cos[j] + sign * x[j - half] * sin[j];
}

QUANTRY_AVX2 void GatedSilu(const float* gate, const float* up, int64_t count, float* out) {
  const __m256 one = _mm256_set1_ps(1.0F);
  for (int64_t j = 0; j < count; j += 8) {
    const __m256 g = Load(gate + j, count - j);
    const __m256 e = Exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));
    const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, e));
    Store(out + j, count - j, _mm256_mul_ps(silu, Load(up + j, count - j)));
  }
}

QUANTRY_AVX2 void GatedSiluSlope(const float* gate, const float* up, const float* slope,
                                 int64_t count, float* gate_slope, float* up_slope) {
  const __m256 one = _mm256_set1_ps(1.0F);
  for (int64_t j = 0; j < count; j += 8) {
    const __m256 g = Load(gate + j, count - j);
    const __m256 s = Load(slope + j, count - j);
    const __m256 e = Exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));
    const __m256 sigmoid = _mm256_div_ps(one, _mm256_add_ps(one, e));
    // d silu / dx = sigmoid (1 + x (1 - sigmoid))
    const __m256 along =
        _mm256_mul_ps(sigmoid, _mm256_fmadd_ps(g, _mm256_sub_ps(one, sigmoid), one));
    const __m256 u = Load(up + j, count - j);
    Store(gate_slope + j, count - j, _mm256_mul_ps(_mm256_mul_ps(s, u), along));
    Store(up_slope + j, count - j, _mm256_mul_ps(s, _mm256_mul_ps(g, sigmoid)));
  }
}

#else

bool Available() { return false; }
void MultiplyAdd(int64_t, int64_t, int64_t, Matrix, const float*, int64_t, float*, int64_t, bool) {}
float ExpRow(float*, int64_t, float, float*) { return 0; }
void ExpShifted(float*, int64_t, float, float) {}
void Scale(float*, int64_t, float) {}
float Dot(const float*, const float*, int64_t) { return 0; }
float SquaredDistance(const float*, const float*, int64_t) { return 0; }
void SoftmaxSlope(const float*, float*, int64_t, float, float) {}
void MultiplyScaled(const float*, const float*, int64_t, float, float*) {}
void AddScaled(const float*, int64_t, float, float*) {}
void WeightedSum(Weighted, Weighted, Weighted, int64_t, float*) {}
void Transpose(const float*, int64_t, int64_t, int64_t, float*) {}
void RotateRow(const float*, const float*, const float*, int64_t, float, float*) {}
void GatedSilu(const float*, const float*, int64_t, float*) {}
void GatedSiluSlope(const float*, const float*, const float*, int64_t, float*, float*) {}

#endif

}  // namespace quantry::engine::simd
