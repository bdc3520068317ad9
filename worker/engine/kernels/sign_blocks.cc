#include "worker/engine/kernels/sign_blocks.h"

#include <algorithm>

#include "worker/engine/base/avx2.h"

namespace quantry::engine {

#if defined(__x86_64__) && defined(__GNUC__)

namespace {

constexpr int kVectors = kSignTokens / 8;
constexpr int kSums = 1 << kSignsPerCode;
// Of the sums that exist at once: less than a first-level cache.
constexpr int64_t kTableBytes = 24 << 10;

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

QUANTRY_AVX2_INLINE __m256 SumOf(const __m256 x[kSignsPerCode]) {
  return _mm256_add_ps(_mm256_add_ps(x[2], x[3]), _mm256_add_ps(x[0], x[1]));
}

// All signed sums of so many groups of columns, in fp32.
struct FloatTable {
  static constexpr int64_t kGroups =
      kTableBytes / (int64_t{kSums} * kSignTokens * int64_t{sizeof(float)});
  alignas(64) float sums[kGroups * kSums * kSignTokens];

  QUANTRY_AVX2_INLINE void Begin() {}
  // The 16 sums of columns x of group g for tokens 8 v .. 8 v + 7.
  QUANTRY_AVX2_INLINE void Put(int64_t g, int64_t v, const __m256 x[kSignsPerCode]) {
    const __m256 zero = _mm256_setzero_ps();
    const __m256 low_sum = _mm256_add_ps(x[0], x[1]), high_sum = _mm256_add_ps(x[2], x[3]);
    const __m256 low_gap = _mm256_sub_ps(x[0], x[1]), high_gap = _mm256_sub_ps(x[2], x[3]);
    const __m256 low[4] = {_mm256_sub_ps(zero, low_sum), low_gap, _mm256_sub_ps(zero, low_gap),
                           low_sum};
    const __m256 high[4] = {_mm256_sub_ps(zero, high_sum), high_gap, _mm256_sub_ps(zero, high_gap),
                            high_sum};
    float* to = sums + g * kSums * kSignTokens + v * 8;
    for (int64_t h = 0; h < 4; ++h) {
      for (int64_t l = 0; l < 4; ++l) {
        _mm256_storeu_ps(to + (h * 4 + l) * kSignTokens, _mm256_add_ps(high[h], low[l]));
      }
    }
  }
  QUANTRY_AVX2_INLINE void Finish(int64_t) {}

  // row += what the codes of so many groups ask for.
  QUANTRY_AVX2_INLINE void Add(const uint8_t* codes, int64_t groups, Vectors& row) const {
    const float* table = sums;
    for (int64_t g = 0; g < groups; ++g, table += int64_t{kSums} * kSignTokens) {
      const float* at = table + static_cast<int64_t>(codes[g]) * kSignTokens;
      for (int64_t v = 0; v < kVectors; ++v)
        row[v] = _mm256_add_ps(row[v], _mm256_loadu_ps(at + v * 8));
    }
  }
};

// The same of columns rounded to 16-bit fixed point, of one scale for all columns
// of the table and a token: the largest with which no sum can overflow.
struct FixedTable {
  static constexpr int64_t kGroups =
      kTableBytes / (int64_t{kSums} * kSignTokens * int64_t{sizeof(int16_t)});
  static constexpr int64_t kColumns = kGroups * kSignsPerCode;
  // In units: each column's rounding may add a half.
  static constexpr int64_t kMost = 32767 - kColumns / 2;
  // Tokens whose columns are smaller together count as zeros: their scale might be no float.
  static constexpr float kLeast = 1e-30F;
  alignas(64) int16_t sums[kGroups * kSums * kSignTokens];
  alignas(64) float columns[kColumns * kSignTokens];
  alignas(64) float sizes[kSignTokens];  // sum of |x|, then the worth of a unit

  QUANTRY_AVX2_INLINE void Begin() { std::fill(sizes, sizes + kSignTokens, 0.0F); }
  QUANTRY_AVX2_INLINE void Put(int64_t g, int64_t v, const __m256 x[kSignsPerCode]) {
    const __m256 sign = _mm256_set1_ps(-0.0F);
    __m256 size = _mm256_loadu_ps(sizes + v * 8);
    for (int64_t b = 0; b < kSignsPerCode; ++b) {
      _mm256_storeu_ps(columns + (g * kSignsPerCode + b) * kSignTokens + v * 8, x[b]);
      size = _mm256_add_ps(size, _mm256_andnot_ps(sign, x[b]));
    }
    _mm256_storeu_ps(sizes + v * 8, size);
  }
  // Tokens 16 v .. 16 v + 15 of a column in units of scales[2 v], scales[2 v + 1].
  QUANTRY_AVX2_INLINE static __m256i Rounded(const float* column, const Vectors& scales,
                                             int64_t v) {
    const auto half = [&](int64_t h) __attribute__((target("avx2,fma"), always_inline)) {
      return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(column + h * 8), scales[h]));
    };
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(half(2 * v), half(2 * v + 1)), 0xD8);
  }
  QUANTRY_AVX2_INLINE void Finish(int64_t groups) {
    Vectors scales;
    for (int64_t v = 0; v < kVectors; ++v) {
      const __m256 size = _mm256_loadu_ps(sizes + v * 8),
                   most = _mm256_set1_ps(static_cast<float>(kMost));
      // NaN stays, and with infinity the worth of a unit is infinite.
      const __m256 none = _mm256_cmp_ps(size, _mm256_set1_ps(kLeast), _CMP_LT_OQ);
      scales[v] = _mm256_andnot_ps(none, _mm256_div_ps(most, size));
      _mm256_storeu_ps(sizes + v * 8, _mm256_div_ps(size, most));
    }
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t v = 0; v < kVectors / 2; ++v) {
        __m256i x[kSignsPerCode];
        for (int64_t b = 0; b < kSignsPerCode; ++b) {
          x[b] = Rounded(columns + (g * kSignsPerCode + b) * kSignTokens, scales, v);
        }
        Store(x, sums + g * kSums * kSignTokens + v * 16);
      }
    }
  }
  QUANTRY_AVX2_INLINE static void Store(const __m256i x[kSignsPerCode], int16_t* to) {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i low_sum = _mm256_add_epi16(x[0], x[1]), high_sum = _mm256_add_epi16(x[2], x[3]);
    const __m256i low_gap = _mm256_sub_epi16(x[0], x[1]), high_gap = _mm256_sub_epi16(x[2], x[3]);
    const __m256i low[4] = {_mm256_sub_epi16(zero, low_sum), low_gap,
                            _mm256_sub_epi16(zero, low_gap), low_sum};
    const __m256i high[4] = {_mm256_sub_epi16(zero, high_sum), high_gap,
                             _mm256_sub_epi16(zero, high_gap), high_sum};
    for (int64_t h = 0; h < 4; ++h) {
      for (int64_t l = 0; l < 4; ++l) {
        auto* at = reinterpret_cast<__m256i*>(to + (h * 4 + l) * kSignTokens);
        _mm256_store_si256(at, _mm256_add_epi16(high[h], low[l]));
      }
    }
  }

  QUANTRY_AVX2_INLINE void Add(const uint8_t* codes, int64_t groups, Vectors& row) const {
    __m256i sum[kVectors / 2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    const int16_t* table = sums;
    for (int64_t g = 0; g < groups; ++g, table += int64_t{kSums} * kSignTokens) {
      const auto* at =
          reinterpret_cast<const __m256i*>(table + static_cast<int64_t>(codes[g]) * kSignTokens);
      for (int64_t v = 0; v < kVectors / 2; ++v) {
        sum[v] = _mm256_add_epi16(sum[v], _mm256_load_si256(at + v));
      }
    }
    for (int64_t v = 0; v < kVectors; ++v) {
      const __m128i eight =
          v % 2 == 0 ? _mm256_castsi256_si128(sum[v / 2]) : _mm256_extracti128_si256(sum[v / 2], 1);
      row[v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight)),
                               _mm256_loadu_ps(sizes + v * 8), row[v]);
    }
  }
};

// tile[row] (+)= the sums its codes `first` .. `first + groups` ask for.
template <typename Table>
QUANTRY_AVX2_INLINE void AddSums(const SignCodes& signs, int64_t first, int64_t groups,
                                 const Table& table, float* tile) {
  const int64_t stride = signs.groups();
  const uint8_t* codes = signs.codes + first;
  for (int64_t i = 0; i < signs.rows; ++i, codes += stride, tile += kSignTokens) {
    Vectors row;
    for (int64_t v = 0; v < kVectors; ++v) {
      row[v] = first == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(tile + v * 8);
    }
    table.Add(codes, groups, row);
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

// Columns j .. j + 3 of x, times r2, to group g of the table; adds them to `total`.
template <typename Table>
QUANTRY_AVX2_INLINE void PutScaled(const SignScales& scales, const TokenRows& x, int64_t j,
                                   int64_t left, int64_t g, Table& table, float* total) {
  for (int64_t v = 0; v < kVectors; ++v) {
    __m256 columns[kSignsPerCode];
    LoadColumns(x, v, j, left, columns);
    for (int64_t b = 0; b < kSignsPerCode && b < left; ++b) {
      columns[b] = _mm256_mul_ps(columns[b], _mm256_broadcast_ss(scales.column + j + b));
    }
    table.Put(g, v, columns);
    _mm256_storeu_ps(total + v * 8, _mm256_add_ps(_mm256_loadu_ps(total + v * 8), SumOf(columns)));
  }
}

// Columns i .. i + 3 of g: their gradients of A and C, C g to `shift`, A g to a group of the table.
template <typename Table>
QUANTRY_AVX2_INLINE void PutSlopes(const SignScales& scales, const TokenRows& g, int64_t i,
                                   int64_t left, const float* tile, const float* total,
                                   int64_t group, Table& table, float* shift,
                                   const SignSlopes& slopes) {
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
    table.Put(group, v, columns);
  }
  for (int64_t b = 0; b < count; ++b) {
    slopes.gain[i + b] = Sum8(gain[b]);
    slopes.offset[i + b] = Sum8(offset[b]);
  }
}

template <typename Table>
QUANTRY_AVX2_INLINE void ForwardBlock(const SignCodes& signs, const SignScales& scales,
                                      const TokenRows& x, const TokenRows& y, float* tile,
                                      float* total) {
  Table table;
  std::fill(total, total + kSignTokens, 0.0F);
  for (int64_t first = 0; first < signs.groups(); first += Table::kGroups) {
    const int64_t groups = std::min(Table::kGroups, signs.groups() - first);
    table.Begin();
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t j = (first + g) * kSignsPerCode;
      PutScaled(scales, x, j, signs.columns - j, g, table, total);
    }
    table.Finish(groups);
    AddSums(signs, first, groups, table, tile);
  }
  AddToOutputs(scales, tile, total, signs.rows, y);
}

template <typename Table>
QUANTRY_AVX2_INLINE void BackwardBlock(const SignCodes& signs, const SignScales& scales,
                                       const TokenRows& g, const TokenRows& x, const float* tile,
                                       const float* total, float* scratch, const TokenRows& x_slope,
                                       const SignSlopes& slopes) {
  Table table;
  alignas(64) float shift[kSignTokens] = {};
  for (int64_t first = 0; first < signs.groups(); first += Table::kGroups) {
    const int64_t groups = std::min(Table::kGroups, signs.groups() - first);
    table.Begin();
    for (int64_t k = 0; k < groups; ++k) {
      const int64_t i = (first + k) * kSignsPerCode;
      PutSlopes(scales, g, i, signs.columns - i, tile, total, k, table, shift, slopes);
    }
    table.Finish(groups);
    AddSums(signs, first, groups, table, scratch);
  }
  InputSlopes(scales, scratch, shift, signs.rows, x, x_slope, slopes.column);
}

}  // namespace

QUANTRY_AVX2 void SignForwardBlock(SignSums sums, const SignCodes& signs, const SignScales& scales,
                                   const TokenRows& x, const TokenRows& y, float* tile,
                                   float* total) {
  if (sums == SignSums::kFloat) {
    ForwardBlock<FloatTable>(signs, scales, x, y, tile, total);
  } else {
    ForwardBlock<FixedTable>(signs, scales, x, y, tile, total);
  }
}

QUANTRY_AVX2 void SignBackwardBlock(SignSums sums, const SignCodes& signs, const SignScales& scales,
                                    const TokenRows& g, const TokenRows& x, const float* tile,
                                    const float* total, float* scratch, const TokenRows& x_slope,
                                    const SignSlopes& slopes) {
  if (sums == SignSums::kFloat) {
    BackwardBlock<FloatTable>(signs, scales, g, x, tile, total, scratch, x_slope, slopes);
  } else {
    BackwardBlock<FixedTable>(signs, scales, g, x, tile, total, scratch, x_slope, slopes);
  }
}

#else

void SignForwardBlock(SignSums, const SignCodes&, const SignScales&, const TokenRows&,
                      const TokenRows&, float*, float*) {}
void SignBackwardBlock(SignSums, const SignCodes&, const SignScales&, const TokenRows&,
                       const TokenRows&, const float*, const float*, float*, const TokenRows&,
                       const SignSlopes&) {}

#endif

}  // namespace quantry::engine
