// The AVX2 kernel. Compiled on every x86-64 through function attributes and
// chosen at run time, so that one binary serves all machines.
#include "worker/engine/base/avx2.h"
#include "worker/engine/kernels/bit_digits.h"
#include "worker/engine/kernels/bit_kernel.h"

#if defined(__x86_64__) && defined(__GNUC__)

namespace quantry::engine {
namespace {

QUANTRY_AVX2 inline __m256i LoadBytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

QUANTRY_AVX2 inline __m256i LoadTable(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Digits d and d + 1 of 16 entries: `a` holds entries 0-3 | 8-11, `b` 4-7 |
// 12-15. 32 bytes, digit d first.
template <int d>
QUANTRY_AVX2 inline __m256i TwoDigits(__m256i a, __m256i b) {
  const __m256i mask = _mm256_set1_epi32((1 << kDigitBits) - 1);
  const __m256i first =
      _mm256_packus_epi32(_mm256_and_si256(_mm256_srli_epi32(a, d * kDigitBits), mask),
                          _mm256_and_si256(_mm256_srli_epi32(b, d * kDigitBits), mask));
  const __m256i second =
      _mm256_packus_epi32(_mm256_and_si256(_mm256_srli_epi32(a, (d + 1) * kDigitBits), mask),
                          _mm256_and_si256(_mm256_srli_epi32(b, (d + 1) * kDigitBits), mask));
  return _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0b11011000);
}

QUANTRY_AVX2 void BuildAvx2Tables(const int32_t* values, int64_t groups, uint8_t* tables) {
  const __m256i bit0 = _mm256_setr_epi32(0, -1, 0, -1, 0, -1, 0, -1);
  const __m256i bit1 = _mm256_setr_epi32(0, 0, -1, -1, 0, 0, -1, -1);
  const __m256i bit3 = _mm256_setr_epi32(0, 0, 0, 0, -1, -1, -1, -1);
  for (int64_t g = 0; g < groups; ++g, values += kGroupColumns, tables += kTableBytes) {
    int32_t offset = 0;
    for (int i = 0; i < kGroupColumns; ++i) offset += values[i] < 0 ? -values[i] : 0;
    __m256i a = _mm256_set1_epi32(offset);
    a = _mm256_add_epi32(a, _mm256_and_si256(_mm256_set1_epi32(values[0]), bit0));
    a = _mm256_add_epi32(a, _mm256_and_si256(_mm256_set1_epi32(values[1]), bit1));
    a = _mm256_add_epi32(a, _mm256_and_si256(_mm256_set1_epi32(values[3]), bit3));
    const __m256i b = _mm256_add_epi32(a, _mm256_set1_epi32(values[2]));
    auto* to = reinterpret_cast<__m256i*>(tables);
    _mm256_storeu_si256(to, TwoDigits<0>(a, b));
    _mm256_storeu_si256(to + 1, TwoDigits<2>(a, b));
  }
}

// Sums of one tile, digit by digit: even and odd bytes apart, 16 bits each.
struct DigitSums {
  __m256i all[kDigits];  // even bytes, plus 256 x odd bytes (mod 2^16)
  __m256i odd[kDigits];
};

QUANTRY_AVX2 inline DigitSums SumTile(const uint8_t* bits, int64_t byte_columns,
                                      const uint8_t* tables) {
  const __m256i nibble = _mm256_set1_epi8(15);
  DigitSums sums;
  for (int d = 0; d < kDigits; ++d) sums.all[d] = sums.odd[d] = _mm256_setzero_si256();
  for (int64_t column = 0; column < byte_columns; column += 2) {
    const __m256i first = LoadBytes(bits);
    const __m256i second = LoadBytes(bits + kTileRows);
    const __m256i index0 = _mm256_and_si256(first, nibble);
    const __m256i index1 = _mm256_and_si256(_mm256_srli_epi16(first, 4), nibble);
    const __m256i index2 = _mm256_and_si256(second, nibble);
    const __m256i index3 = _mm256_and_si256(_mm256_srli_epi16(second, 4), nibble);
#pragma GCC unroll 4
    for (int d = 0; d < kDigits; ++d) {
      const uint8_t* table = tables + d * kDigitBytes;
      const __m256i ab =
          _mm256_add_epi8(_mm256_shuffle_epi8(LoadTable(table), index0),
                          _mm256_shuffle_epi8(LoadTable(table + kTableBytes), index1));
      const __m256i cd =
          _mm256_add_epi8(_mm256_shuffle_epi8(LoadTable(table + 2 * kTableBytes), index2),
                          _mm256_shuffle_epi8(LoadTable(table + 3 * kTableBytes), index3));
      const __m256i four = _mm256_add_epi8(ab, cd);
      sums.all[d] = _mm256_add_epi16(sums.all[d], four);
      sums.odd[d] = _mm256_add_epi16(sums.odd[d], _mm256_srli_epi16(four, 8));
    }
    bits += 2 * kTileRows;
    tables += 4 * kTableBytes;
  }
  // Even sums are below 2^16, so the borrowed upper parts cancel exactly.
  for (int d = 0; d < kDigits; ++d) {
    sums.all[d] = _mm256_sub_epi16(sums.all[d], _mm256_slli_epi16(sums.odd[d], 8));
  }
  return sums;
}

// Eight row sums of 32 bits, shifted and added to 64-bit ones.
QUANTRY_AVX2 inline void AddRows(__m256i rows, int shift, uint64_t* sums) {
  auto* to = reinterpret_cast<__m256i*>(sums);
  const __m128i count = _mm_cvtsi32_si128(shift);
  const __m256i low = _mm256_cvtepu32_epi64(_mm256_castsi256_si128(rows));
  const __m256i high = _mm256_cvtepu32_epi64(_mm256_extracti128_si256(rows, 1));
  _mm256_storeu_si256(to, _mm256_add_epi64(_mm256_loadu_si256(to), _mm256_sll_epi64(low, count)));
  _mm256_storeu_si256(to + 1,
                      _mm256_add_epi64(_mm256_loadu_si256(to + 1), _mm256_sll_epi64(high, count)));
}

// Puts 16 rows' digits together: d0 + d1 2^6 + d2 2^12 + d3 2^18. The sum of
// 256 entries of 24 bits fits 32.
QUANTRY_AVX2 inline void AddDigits(const __m256i* digits, int shift, uint64_t* sums) {
  const __m256i weights = _mm256_set1_epi32((1 << (16 + kDigitBits)) | 1);
  const __m256i low01 = _mm256_madd_epi16(_mm256_unpacklo_epi16(digits[0], digits[1]), weights);
  const __m256i low23 = _mm256_madd_epi16(_mm256_unpacklo_epi16(digits[2], digits[3]), weights);
  const __m256i high01 = _mm256_madd_epi16(_mm256_unpackhi_epi16(digits[0], digits[1]), weights);
  const __m256i high23 = _mm256_madd_epi16(_mm256_unpackhi_epi16(digits[2], digits[3]), weights);
  AddRows(_mm256_add_epi32(low01, _mm256_slli_epi32(low23, 2 * kDigitBits)), shift, sums);
  AddRows(_mm256_add_epi32(high01, _mm256_slli_epi32(high23, 2 * kDigitBits)), shift, sums + 8);
}

QUANTRY_AVX2 void AccumulateAvx2(const uint8_t* bits, int64_t tiles, int64_t byte_columns,
                                 const uint8_t* tables, int shift, uint64_t* sums) {
  for (int64_t tile = 0; tile < tiles; ++tile, sums += kTileRows) {
    const DigitSums digits = SumTile(bits, byte_columns, tables);
    bits += byte_columns * kTileRows;
    AddDigits(digits.all, shift, sums);
    AddDigits(digits.odd, shift, sums + 16);
  }
}

constexpr BitKernel kAvx2 = {"avx2", BuildAvx2Tables, AccumulateAvx2};

}  // namespace

const BitKernel* Avx2BitKernel() { return HasAvx2() ? &kAvx2 : nullptr; }

}  // namespace quantry::engine

#else

namespace quantry::engine {

const BitKernel* Avx2BitKernel() { return nullptr; }

}  // namespace quantry::engine

#endif
