#include "worker/engine/kernels/bit_kernel.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

namespace quantry::engine {
namespace {

constexpr int kSubsets = 16;
static_assert(kTableBytes == kSubsets * sizeof(uint32_t), "a table is 16 words");

void BuildTables(const int32_t* values, int64_t groups, uint8_t* tables) {
  for (int64_t g = 0; g < groups; ++g) {
    const int32_t* v = values + g * kGroupColumns;
    uint32_t entries[kSubsets] = {};
    for (int i = 0; i < kGroupColumns; ++i) {
      if (v[i] < 0) entries[0] += static_cast<uint32_t>(-v[i]);
    }
    for (int subset = 1; subset < kSubsets; ++subset) {
      const int top = 31 - __builtin_clz(static_cast<unsigned>(subset));
      entries[subset] = entries[subset ^ (1 << top)] + static_cast<uint32_t>(v[top]);
    }
    std::memcpy(tables + g * kTableBytes, entries, sizeof(entries));
  }
}

void Accumulate(const uint8_t* bits, int64_t tiles, int64_t byte_columns, const uint8_t* tables,
                int shift, uint64_t* sums) {
  for (int64_t tile = 0; tile < tiles; ++tile, sums += kTileRows) {
    uint64_t totals[kTileRows] = {};  // in the order of positions
    for (int64_t column = 0; column < byte_columns; ++column, bits += kTileRows) {
      uint32_t low[kSubsets], high[kSubsets];
      std::memcpy(low, tables + 2 * column * kTableBytes, sizeof(low));
      std::memcpy(high, tables + (2 * column + 1) * kTableBytes, sizeof(high));
      for (int64_t i = 0; i < kTileRows; ++i) totals[i] += low[bits[i] & 15] + high[bits[i] >> 4];
    }
    for (int64_t i = 0; i < kTileRows; ++i) sums[TileRow(i)] += totals[i] << shift;
  }
}

constexpr BitKernel kPortable = {"portable", BuildTables, Accumulate};

}  // namespace

const BitKernel& PortableBitKernel() { return kPortable; }

std::vector<const BitKernel*> BitKernels() {
  std::vector<const BitKernel*> kernels = {&kPortable};
  for (const BitKernel* kernel : {Avx2BitKernel(), Avx512BitKernel()}) {
    if (kernel != nullptr) kernels.push_back(kernel);
  }
  return kernels;
}

namespace {

// Seconds of a product of 2,048 rows and 1,024 columns, the best of several.
double SecondsOf(const BitKernel& kernel) {
  constexpr int64_t kTiles = 64, kGroups = 2 * kMaxByteColumns;
  const std::vector<int32_t> values(kGroups * kGroupColumns, 1);
  const std::vector<uint8_t> bits(kTiles * kMaxByteColumns * kTileRows, 0x5A);
  std::vector<uint8_t> tables(kGroups * kTableBytes);
  std::vector<uint64_t> sums(kTiles * kTileRows);
  kernel.build_tables(values.data(), kGroups, tables.data());
  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 5; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    kernel.accumulate(bits.data(), kTiles, kMaxByteColumns, tables.data(), 0, sums.data());
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    best = std::min(best, took.count());
  }
  return best;
}

const BitKernel* Fastest() {
  const BitKernel *narrow = Avx2BitKernel(), *wide = Avx512BitKernel();
  if (narrow == nullptr || wide == nullptr) return BitKernels().back();
  return SecondsOf(*wide) < SecondsOf(*narrow) ? wide : narrow;
}

}  // namespace

const BitKernel& BestBitKernel() {
  static const BitKernel* const best = Fastest();
  return *best;
}

}  // namespace quantry::engine
