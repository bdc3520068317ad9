#pragma once

// The body of the AVX-512 kernel, of one source file each time it is included:
// bit_kernel_avx512.cc compiles it for the CPU. With QUANTRY_EMULATE_AVX512 the
// same intrinsics are SIMDe's plain C, so that tests run them on any machine;
// only intrinsics that SIMDe 0.7.4 has are used.
#include "worker/engine/kernels/bit_digits.h"
#include "worker/engine/kernels/bit_kernel.h"

#ifdef QUANTRY_EMULATE_AVX512
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
// That of 0.7.4 takes the arguments of the masked one.
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 simde_mm512_madd_epi16  // NOLINT(bugprone-reserved-identifier)
#define QUANTRY_AVX512
#else
#include <immintrin.h>
#define QUANTRY_AVX512 __attribute__((target("avx512f,avx512bw")))
#endif

namespace quantry::engine {
namespace {

// Entries of 24 bits -> bytes: digit d of each entry in its byte d.
QUANTRY_AVX512 inline __m512i Spread(__m512i entries) {
  constexpr int kDigit = (1 << kDigitBits) - 1;
  constexpr int kGap = 8 - kDigitBits;
  const __m512i d0 = _mm512_and_si512(entries, _mm512_set1_epi32(kDigit));
  const __m512i d1 =
      _mm512_and_si512(_mm512_slli_epi32(entries, kGap), _mm512_set1_epi32(kDigit << 8));
  const __m512i d2 =
      _mm512_and_si512(_mm512_slli_epi32(entries, 2 * kGap), _mm512_set1_epi32(kDigit << 16));
  const __m512i d3 =
      _mm512_and_si512(_mm512_slli_epi32(entries, 3 * kGap), _mm512_set1_epi32(kDigit << 24));
  return _mm512_or_si512(_mm512_or_si512(d0, d1), _mm512_or_si512(d2, d3));
}

// 16 entries of four digits -> four digits of 16 entries: the digits of four
// entries together within each 128 bits, then four times four entries.
QUANTRY_AVX512 inline __m512i Transpose(__m512i entries) {
  const __m512i bytes =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i words = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(words, _mm512_shuffle_epi8(entries, bytes));
}

QUANTRY_AVX512 void BuildTables(const int32_t* values, int64_t groups, uint8_t* tables) {
  for (int64_t g = 0; g < groups; ++g, values += kGroupColumns, tables += kTableBytes) {
    int32_t offset = 0;
    for (int i = 0; i < kGroupColumns; ++i) offset += values[i] < 0 ? -values[i] : 0;
    // Bit e of a mask: whether entry e, a subset, holds the value.
    __m512i entries = _mm512_set1_epi32(offset);
    entries = _mm512_mask_add_epi32(entries, 0xaaaa, entries, _mm512_set1_epi32(values[0]));
    entries = _mm512_mask_add_epi32(entries, 0xcccc, entries, _mm512_set1_epi32(values[1]));
    entries = _mm512_mask_add_epi32(entries, 0xf0f0, entries, _mm512_set1_epi32(values[2]));
    entries = _mm512_mask_add_epi32(entries, 0xff00, entries, _mm512_set1_epi32(values[3]));
    _mm512_storeu_si512(tables, Transpose(Spread(entries)));
  }
}

// The same byte column of two tiles.
QUANTRY_AVX512 inline __m512i Load(const uint8_t* first, const uint8_t* second) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// Digits of the entries that 64 rows select.
QUANTRY_AVX512 inline __m512i LookUp(const uint8_t* table, __m512i nibbles) {
  const __m128i digits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(digits), nibbles);
}

// Sums of two tiles, digit by digit: even and odd bytes apart, 16 bits each.
struct DigitSums {
  __m512i all[kDigits];  // even bytes, plus 256 x odd bytes (mod 2^16)
  __m512i odd[kDigits];
};

QUANTRY_AVX512 inline DigitSums SumTiles(const uint8_t* first, const uint8_t* second,
                                         int64_t byte_columns, const uint8_t* tables) {
  // The next pair's columns, which two short streams do not make the CPU fetch by itself; past
  // the last pair it asks for nothing that is read.
  const int64_t next_pair = 2 * byte_columns * kTileRows;
  const __m512i nibble = _mm512_set1_epi8(15);
  DigitSums sums;
  for (int d = 0; d < kDigits; ++d) sums.all[d] = sums.odd[d] = _mm512_setzero_si512();
  for (int64_t column = 0; column < byte_columns; column += 2) {
    __builtin_prefetch(first + next_pair);
    __builtin_prefetch(second + next_pair);
    const __m512i left = Load(first, second);
    const __m512i right = Load(first + kTileRows, second + kTileRows);
    const __m512i index0 = _mm512_and_si512(left, nibble);
    const __m512i index1 = _mm512_and_si512(_mm512_srli_epi16(left, 4), nibble);
    const __m512i index2 = _mm512_and_si512(right, nibble);
    const __m512i index3 = _mm512_and_si512(_mm512_srli_epi16(right, 4), nibble);
#pragma GCC unroll 4
    for (int d = 0; d < kDigits; ++d) {
      const uint8_t* table = tables + d * kDigitBytes;
      const __m512i ab =
          _mm512_add_epi8(LookUp(table, index0), LookUp(table + kTableBytes, index1));
      const __m512i cd = _mm512_add_epi8(LookUp(table + 2 * kTableBytes, index2),
                                         LookUp(table + 3 * kTableBytes, index3));
      const __m512i four = _mm512_add_epi8(ab, cd);
      sums.all[d] = _mm512_add_epi16(sums.all[d], four);
      sums.odd[d] = _mm512_add_epi16(sums.odd[d], _mm512_srli_epi16(four, 8));
    }
    first += 2 * kTileRows;
    second += 2 * kTileRows;
    tables += 4 * kTableBytes;
  }
  // Even sums are below 2^16, so the borrowed upper parts cancel exactly.
  for (int d = 0; d < kDigits; ++d) {
    sums.all[d] = _mm512_sub_epi16(sums.all[d], _mm512_slli_epi16(sums.odd[d], 8));
  }
  return sums;
}

// Rows of the two tiles of a pair, 64 bits each.
struct PairSums {
  uint64_t* first;
  uint64_t* second;  // nullptr: the first tile is the last one
};

// Eight row sums of 32 bits, those that `words` names twice each, shifted and
// added to 64-bit ones.
QUANTRY_AVX512 inline void AddEight(__m512i words, __m512i rows, int shift, uint64_t* sums) {
  const __m512i wide = _mm512_maskz_permutexvar_epi32(0x5555, words, rows);
  const __m512i shifted = _mm512_sll_epi64(wide, _mm_cvtsi32_si128(shift));
  _mm512_storeu_si512(sums, _mm512_add_epi64(_mm512_loadu_si512(sums), shifted));
}

// Eight row sums of each tile, from row `row` on.
QUANTRY_AVX512 inline void AddRows(__m512i rows, int shift, PairSums sums, int64_t row) {
  const __m512i words = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  AddEight(words, rows, shift, sums.first + row);
  if (sums.second == nullptr) return;
  AddEight(_mm512_add_epi32(words, _mm512_set1_epi32(8)), rows, shift, sums.second + row);
}

// Puts the digits of 16 rows of each tile together, from row `row` on:
// d0 + d1 2^6 + d2 2^12 + d3 2^18.
QUANTRY_AVX512 inline void AddDigits(const __m512i* digits, int shift, PairSums sums, int64_t row) {
  const __m512i weights = _mm512_set1_epi32((1 << (16 + kDigitBits)) | 1);
  const __m512i low01 = _mm512_madd_epi16(_mm512_unpacklo_epi16(digits[0], digits[1]), weights);
  const __m512i low23 = _mm512_madd_epi16(_mm512_unpacklo_epi16(digits[2], digits[3]), weights);
  const __m512i high01 = _mm512_madd_epi16(_mm512_unpackhi_epi16(digits[0], digits[1]), weights);
  const __m512i high23 = _mm512_madd_epi16(_mm512_unpackhi_epi16(digits[2], digits[3]), weights);
  const __m512i low = _mm512_add_epi32(low01, _mm512_slli_epi32(low23, 2 * kDigitBits));
  const __m512i high = _mm512_add_epi32(high01, _mm512_slli_epi32(high23, 2 * kDigitBits));
  AddRows(low, shift, sums, row);
  AddRows(high, shift, sums, row + 8);
}

// Tiles in pairs, one beside the other in a register, so that a table loaded
// once serves 64 rows. A last single tile is paired with itself.
QUANTRY_AVX512 void Accumulate(const uint8_t* bits, int64_t tiles, int64_t byte_columns,
                               const uint8_t* tables, int shift, uint64_t* sums) {
  const int64_t tile_bytes = byte_columns * kTileRows;
  for (int64_t tile = 0; tile < tiles; tile += 2) {
    const bool pair = tile + 1 < tiles;
    const uint8_t* first = bits + tile * tile_bytes;
    const DigitSums digits =
        SumTiles(first, pair ? first + tile_bytes : first, byte_columns, tables);
    uint64_t* rows = sums + tile * kTileRows;
    const PairSums to = {rows, pair ? rows + kTileRows : nullptr};
    AddDigits(digits.all, shift, to, 0);
    AddDigits(digits.odd, shift, to, 16);
  }
}

}  // namespace
}  // namespace quantry::engine
