#include "worker/engine/quant/packing.h"

#include <gtest/gtest.h>

#include <vector>

#include "worker/engine/base/error.h"

namespace quantry::engine {
namespace {

struct Golden {
  int bits;
  std::vector<uint32_t> words;
};

// formats.md 3.0: 32 codes c_i = i mod 2^b.
TEST(Packing, GoldenVectors) {
  const std::vector<Golden> cases = {
      {1, {0xAAAAAAAA}},
      {2, {0xE4E4E4E4, 0xE4E4E4E4}},
      {3, {0x88FAC688, 0xC688FAC6, 0xFAC688FA}},
      {4, {0x76543210, 0xFEDCBA98, 0x76543210, 0xFEDCBA98}},
  };
  for (const Golden& golden : cases) {
    std::vector<uint8_t> codes(32);
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(i % (1 << golden.bits));
    std::vector<uint32_t> words(PackedWords(32, golden.bits));
    PackStream(codes.data(), 32, golden.bits, words.data());
    EXPECT_EQ(words, golden.words) << golden.bits << " bits";
  }
}

// qzeros constants for symmetric weights, GPTQ v2.
TEST(Packing, GoldenSymmetricZeros) {
  const std::vector<Golden> cases = {
      {2, {0xAAAAAAAA}}, {3, {0x24924924, 0x49249249, 0x92492492}}, {4, {0x88888888}}};
  for (const Golden& golden : cases) {
    const auto count = static_cast<int64_t>(golden.words.size()) * 32 / golden.bits;
    const at::Tensor zeros = at::full({count, 1}, 1 << (golden.bits - 1), at::kByte);
    const at::Tensor packed = PackColumns(zeros, golden.bits);
    for (size_t i = 0; i < golden.words.size(); ++i) {
      EXPECT_EQ(static_cast<uint32_t>(packed[i][0].item<int32_t>()), golden.words[i]);
    }
  }
}

TEST(Packing, EncodeDecodeEncodeWithOddTails) {
  at::manual_seed(0);
  for (const int bits : {1, 2, 3, 4, 6, 8}) {
    for (const int64_t columns : {1, 3, 10, 11, 31, 32, 33, 64, 172, 257}) {
      const at::Tensor codes = at::randint(0, 1 << bits, {5, columns}, at::kByte);
      const at::Tensor rows = PackRows(codes, bits);
      EXPECT_EQ(rows.size(1), (columns * bits + 31) / 32);
      EXPECT_TRUE(at::equal(UnpackRows(rows, columns, bits), codes)) << bits << " " << columns;
      EXPECT_TRUE(at::equal(PackRows(UnpackRows(rows, columns, bits), bits), rows));
      const at::Tensor along_n = PackColumns(codes, bits);
      EXPECT_TRUE(at::equal(UnpackColumns(along_n, 5, bits), codes)) << bits << " " << columns;
      EXPECT_TRUE(at::equal(along_n, PackRows(codes.t(), bits).t()));
    }
  }
}

TEST(Packing, EveryCodeOfEveryWidth) {
  for (const int bits : {2, 3, 4, 8}) {
    const at::Tensor codes = at::arange(0, 1 << bits, at::kByte).view({1, -1});
    EXPECT_TRUE(at::equal(UnpackRows(PackRows(codes, bits), 1 << bits, bits), codes)) << bits;
  }
}

// Whatever stands in a row's unused bits.
TEST(Packing, BytesUnpackAsWordsDo) {
  at::manual_seed(1);
  for (const int bits : {1, 2, 4, 8}) {
    for (const int64_t columns : {0, 1, 3, 11, 32, 33, 257}) {
      const at::Tensor codes = at::randint(0, 1 << bits, {5, columns}, at::kByte);
      const at::Tensor bytes = PackRows(codes, bits).view(at::kByte);
      EXPECT_TRUE(at::equal(UnpackBytes(bytes, columns, bits), codes)) << bits << " " << columns;
      const at::Tensor unused = PackRows(at::full_like(codes, (1 << bits) - 1), bits);
      const at::Tensor filled = bytes.bitwise_or(unused.view(at::kByte).bitwise_not());
      EXPECT_TRUE(at::equal(UnpackBytes(filled, columns, bits), codes)) << bits << " " << columns;
    }
  }
}

TEST(Packing, RefusesCodesThatDoNotFit) {
  EXPECT_THROW(PackRows(at::full({2, 40}, 4, at::kByte), 2), EngineError);
  EXPECT_THROW(PackRows(at::zeros({2, 40}, at::kInt), 2), EngineError);
  EXPECT_THROW(UnpackRows(at::zeros({2, 2}, at::kInt), 40, 2), EngineError);
}

}  // namespace
}  // namespace quantry::engine
