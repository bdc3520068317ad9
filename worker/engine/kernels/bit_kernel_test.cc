#include "worker/engine/kernels/bit_kernel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "worker/engine/kernels/avx512_emulation.h"

namespace quantry::engine {
namespace {

constexpr int32_t kLargest = (1 << kValueBits) - 1;

// Those of this CPU and the emulated AVX-512 one.
std::vector<const BitKernel*> Kernels() {
  std::vector<const BitKernel*> kernels = BitKernels();
  if (EmulatedAvx512BitKernel() != nullptr) kernels.push_back(EmulatedAvx512BitKernel());
  return kernels;
}

std::vector<int32_t> RandomValues(int64_t byte_columns, std::mt19937& random) {
  std::vector<int32_t> values(byte_columns * 8);
  for (int32_t& value : values) {
    value = static_cast<int32_t>(random() % (2 * kLargest + 1)) - kLargest;
  }
  return values;
}

std::vector<uint8_t> RandomBits(int64_t tiles, int64_t byte_columns, std::mt19937& random) {
  std::vector<uint8_t> bits(tiles * byte_columns * kTileRows);
  for (uint8_t& byte : bits) byte = static_cast<uint8_t>(random());
  return bits;
}

// values: [byte_columns * 8]; bits: [tiles, byte_columns, 32]. Sums of all rows,
// to which the kernel adds, and a tile more, which it must leave alone.
std::vector<uint64_t> Sums(const BitKernel& kernel, const std::vector<int32_t>& values,
                           const std::vector<uint8_t>& bits, int shift) {
  const auto byte_columns = static_cast<int64_t>(values.size()) / 8;
  const int64_t groups = byte_columns * 2;
  const int64_t tiles = static_cast<int64_t>(bits.size()) / (byte_columns * kTileRows);
  std::vector<uint8_t> tables(groups * kTableBytes);
  kernel.build_tables(values.data(), groups, tables.data());
  std::vector<uint64_t> sums((tiles + 1) * kTileRows);
  for (size_t i = 0; i < sums.size(); ++i) sums[i] = (uint64_t{1} << 40) + i;
  kernel.accumulate(bits.data(), tiles, byte_columns, tables.data(), shift, sums.data());
  return sums;
}

void ExpectThePortableSums(const std::vector<int32_t>& values, const std::vector<uint8_t>& bits,
                           int shift, const std::string& name) {
  const std::vector<uint64_t> wanted = Sums(PortableBitKernel(), values, bits, shift);
  for (const BitKernel* kernel : Kernels()) {
    EXPECT_EQ(Sums(*kernel, values, bits, shift), wanted) << kernel->name << ", " << name;
  }
}

TEST(BitKernel, ThePortableOneComesFirstAndIsTheBestOnlyAlone) {
  const std::vector<const BitKernel*> kernels = BitKernels();
  EXPECT_EQ(kernels.front(), &PortableBitKernel());
  EXPECT_EQ(&BestBitKernel(), &BestBitKernel()) << "chosen once";
  EXPECT_EQ(std::count(kernels.begin(), kernels.end(), &BestBitKernel()), 1);
  EXPECT_EQ(&BestBitKernel() == &PortableBitKernel(), kernels.size() == 1);
}

// Without SIMDe the others test AVX-512 only on a CPU that has it.
TEST(BitKernel, Avx512IsEmulated) {
  if (EmulatedAvx512BitKernel() == nullptr) GTEST_SKIP() << "built without SIMDe";
  EXPECT_STREQ(EmulatedAvx512BitKernel()->name, "avx512, emulated");
}

// Invariant 12 (spec: ptq161.md 11.3): pad bits never influence results. The
// kernel meets filled-up columns with activations of 0.
TEST(BitKernel, Invariant12PadBitsNeverInfluenceSums) {
  std::mt19937 random(8);
  std::vector<int32_t> values(16, 0);
  for (int j = 0; j < 11; ++j) values[j] = static_cast<int32_t>(random() % 2001) - 1000;
  std::vector<uint8_t> clean(2 * kTileRows), dirty(2 * kTileRows);
  for (int64_t i = 0; i < kTileRows; ++i) {
    clean[i] = dirty[i] = static_cast<uint8_t>(random());
    clean[kTileRows + i] = static_cast<uint8_t>(random()) & 0b111;
    dirty[kTileRows + i] = clean[kTileRows + i] | 0b11111000;
  }
  for (const BitKernel* kernel : Kernels()) {
    std::vector<uint8_t> tables(4 * kTableBytes);
    kernel->build_tables(values.data(), 4, tables.data());
    std::vector<uint64_t> a(kTileRows, 0), b(kTileRows, 0);
    kernel->accumulate(clean.data(), 1, 2, tables.data(), 0, a.data());
    kernel->accumulate(dirty.data(), 1, 2, tables.data(), 0, b.data());
    EXPECT_EQ(a, b) << kernel->name;
    EXPECT_NE(a[0], 0U);
  }
}

TEST(BitKernel, SumsSelectedValuesOfEveryRow) {
  std::mt19937 random(9);
  const std::vector<int32_t> values = RandomValues(kMaxByteColumns, random);
  const std::vector<uint8_t> bits = RandomBits(1, kMaxByteColumns, random);
  int64_t offset = 0;
  for (const int32_t value : values) offset += value < 0 ? -value : 0;
  for (const BitKernel* kernel : Kernels()) {
    std::vector<uint8_t> tables(values.size() / kGroupColumns * kTableBytes);
    kernel->build_tables(values.data(), values.size() / kGroupColumns, tables.data());
    std::vector<uint64_t> sums(kTileRows, 5);
    kernel->accumulate(bits.data(), 1, kMaxByteColumns, tables.data(), 3, sums.data());
    for (int64_t i = 0; i < kTileRows; ++i) {
      int64_t wanted = offset;
      for (size_t j = 0; j < values.size(); ++j) {
        if ((bits[j / 8 * kTileRows + i] >> (j % 8)) & 1) wanted += values[j];
      }
      EXPECT_EQ(static_cast<int64_t>(sums[TileRow(i)]), 5 + (wanted << 3)) << kernel->name << i;
    }
  }
}

TEST(BitKernel, AllGiveThePortableSums) {
  std::mt19937 random(10);
  for (int64_t byte_columns = 2; byte_columns <= kMaxByteColumns; byte_columns += 2) {
    const int64_t tiles = 1 + byte_columns / 2 % 5;
    const int shift = static_cast<int>(byte_columns) / 2 % 8;
    ExpectThePortableSums(
        RandomValues(byte_columns, random), RandomBits(tiles, byte_columns, random), shift,
        std::to_string(byte_columns) + " byte columns, " + std::to_string(tiles) + " tiles");
  }
}

// Each subset of each group by itself: an entry in the wrong place is seen
// wherever it stands.
TEST(BitKernel, EveryEntryOfATableIsFound) {
  std::mt19937 random(11);
  const std::vector<int32_t> values = RandomValues(2, random);
  for (int64_t group = 0; group < 4; ++group) {
    std::vector<uint8_t> bits(2 * 2 * kTileRows, 0);
    for (int64_t i = 0; i < 2 * kTileRows; ++i) {  // two tiles
      const int64_t at = i / kTileRows * 2 * kTileRows + group / 2 * kTileRows + i % kTileRows;
      bits[at] = static_cast<uint8_t>(i % 16 << (group % 2 * 4));
    }
    ExpectThePortableSums(values, bits, 0, "group " + std::to_string(group));
  }
}

TEST(BitKernel, TilesAreIndependent) {
  std::mt19937 random(12);
  for (int64_t tiles = 0; tiles <= 6; ++tiles) {
    ExpectThePortableSums(RandomValues(16, random), RandomBits(tiles, 16, random), 0,
                          std::to_string(tiles) + " tiles");
  }
}

// Values at the limit fill every digit of the tables, every byte of four digits
// and every 16-bit lane of their sums.
TEST(BitKernel, ExtremeValuesDoNotOverflow) {
  std::mt19937 random(13);
  for (const int64_t byte_columns : {int64_t{2}, kMaxByteColumns - 2, kMaxByteColumns}) {
    std::vector<int32_t> mixed(byte_columns * 8);
    for (int32_t& value : mixed) value = random() % 2 == 0 ? kLargest : -kLargest;
    for (const int32_t value : {kLargest, -kLargest}) {
      const std::vector<int32_t> values(byte_columns * 8, value);
      for (const int byte : {0xff, 0x00, 0x0f, 0xf0, 0x55}) {
        const std::vector<uint8_t> bits(3 * byte_columns * kTileRows, static_cast<uint8_t>(byte));
        const std::string name = std::to_string(value) + ", bits " + std::to_string(byte);
        ExpectThePortableSums(values, bits, 7, name);
        ExpectThePortableSums(mixed, bits, 7, "mixed " + name);
      }
      ExpectThePortableSums(values, RandomBits(3, byte_columns, random), 3, "random bits");
    }
  }
}

// The sum itself, beside the reference: 1,024 x (2^22 - 1) needs all 32 bits.
TEST(BitKernel, TheLargestSumIsExact) {
  const std::vector<int32_t> values(kMaxByteColumns * 8, kLargest);
  const std::vector<uint8_t> bits(kMaxByteColumns * kTileRows, 0xff);
  for (const BitKernel* kernel : Kernels()) {
    const std::vector<uint64_t> sums = Sums(*kernel, values, bits, 7);
    for (int64_t i = 0; i < kTileRows; ++i) {
      EXPECT_EQ(sums[i], (uint64_t{1} << 40) + i + ((uint64_t{1024} * kLargest) << 7))
          << kernel->name;
    }
  }
}

}  // namespace
}  // namespace quantry::engine
