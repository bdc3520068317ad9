#pragma once

#include <cstdint>
#include <vector>

namespace quantry::engine {

// Sums of activations selected by bits, the one inner loop of packed products.
//
// Activations are integers of at most kValueBits bits and a sign. For every
// group of four columns a table holds the sums of all 16 subsets, so that one
// lookup by a nibble of weight bits does four columns; the nibbles of 32 rows
// are looked up by one byte shuffle. A table entry has 24 bits (four values of
// 22), cut into four digits of six so that four digits add up in a byte.
//
// Everything is integer, hence exact: kernels, tilings and thread counts all
// give the same bits.

constexpr int64_t kTileRows = 32;
constexpr int64_t kGroupColumns = 4;
constexpr int64_t kTableBytes = 64;  // of one group, in each kernel's own format
constexpr int kValueBits = 22;
// Byte columns of one call: 128 = 1,024 columns keep the digit sums of the AVX2
// and the AVX-512 kernel below 2^15 (bit_digits.h) and the tables (16 KiB)
// inside the first-level cache.
constexpr int64_t kMaxByteColumns = 128;

// Row of a tile whose bits stand at byte `position` of each byte column. The
// order makes the sums of the AVX2 and the AVX-512 kernel come out in row order.
constexpr int64_t TileRow(int64_t position) {
  const int64_t odd = position % 2;
  const int64_t half = position / 16;
  const int64_t eight = position % 16 / 8;
  return odd * 16 + eight * 8 + half * 4 + position % 8 / 2;
}

struct BitKernel {
  const char* name;

  // Tables of `groups` groups. values: [groups * 4], |v| < 2^22; tables:
  // [groups * kTableBytes].
  void (*build_tables)(const int32_t* values, int64_t groups, uint8_t* tables);

  // For each of `tiles` tiles and each of its rows:
  //   sums[row] += (sum of values at the row's set bits + offset) << shift
  // where offset = sum of max(0, -v) over all columns: entries are made
  // non-negative. bits: [tiles, byte_columns, 32], low nibble = even group;
  // byte_columns is even and at most kMaxByteColumns.
  void (*accumulate)(const uint8_t* bits, int64_t tiles, int64_t byte_columns,
                     const uint8_t* tables, int shift, uint64_t* sums);
};

// The reference; runs everywhere.
const BitKernel& PortableBitKernel();

// nullptr where the compiler or this CPU has no AVX2.
const BitKernel* Avx2BitKernel();

// nullptr where the compiler or this CPU has no AVX-512 (F and BW).
const BitKernel* Avx512BitKernel();

// Those of this CPU, the portable one first, the widest last.
std::vector<const BitKernel*> BitKernels();

// The fastest one of this CPU. AVX-512 is not on CPUs that do its work in two halves:
// tried out beside AVX2 at the first call, for a millisecond or two, where there are both.
const BitKernel& BestBitKernel();

}  // namespace quantry::engine
