#include "worker/engine/quant/mixed_binary.h"

#include <gtest/gtest.h>

#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {
namespace {

// Two rows, five columns; 1 and 3 are salient.
MixedBinaryWeight Small() {
  MixedBinaryWeight weight;
  weight.columns = 5;
  weight.salient = at::tensor({1, 3}, at::kInt);
  weight.codes = at::tensor({0, 15, 12, 6}, at::kByte).view({2, 2});
  weight.scales = at::tensor({0.125, 0.5}, at::kFloat);
  weight.zeros = at::tensor({10, 9}, at::kByte);
  weight.signs = at::tensor({1, 0, 1, 0, 0, 1}, at::kByte).view({2, 3});
  weight.row_gain = at::tensor({0.25, -1.0}, at::kFloat);
  weight.row_offset = at::tensor({0.125, 0.5}, at::kFloat);
  weight.column_gain = at::tensor({1.0, 2.0, -0.5}, at::kFloat);
  return weight;
}

TEST(MixedBinary, DequantizesByHand) {
  const at::Tensor wanted = at::tensor({0.375, -1.25, -0.25, 0.625, -0.1875,  //
                                        1.5, 1.5, 3.0, -1.5, 0.25},
                                       at::kFloat)
                                .view({2, 5});
  EXPECT_TRUE(at::equal(Small().Dequantize(), wanted));
  QuantizedLinear linear;
  linear.mixed = Small();
  EXPECT_EQ(linear.kind(), WeightKind::kMixedBinary);
  EXPECT_EQ(linear.rows(), 2);
  EXPECT_EQ(linear.columns(), 5);
  EXPECT_TRUE(at::equal(linear.Dequantize(), wanted));
}

TEST(MixedBinary, OtherColumnsAreTheRest) {
  EXPECT_TRUE(at::equal(Small().OtherColumns(), at::tensor({0, 2, 4}, at::kLong)));
}

TEST(MixedBinary, AllOrNoColumnsMayBeSalient) {
  MixedBinaryWeight weight = Small();
  weight.columns = 2;
  weight.salient = at::tensor({0, 1}, at::kInt);
  weight.signs = at::empty({2, 0}, at::kByte);
  weight.column_gain = at::empty({0});
  EXPECT_TRUE(at::equal(weight.Dequantize(),
                        at::tensor({-1.25, 0.625, 1.5, -1.5}, at::kFloat).view({2, 2})));
  weight = Small();
  weight.columns = 3;
  weight.salient = at::empty({0}, at::kInt);
  weight.codes = at::empty({2, 0}, at::kByte);
  EXPECT_TRUE(at::equal(weight.Dequantize()[0], at::tensor({0.375, -0.25, -0.1875}, at::kFloat)));
}

// Spec: ptq161.md 6, the table of LLaMA-7B.
TEST(MixedBinary, BitsOfLlama7B) {
  const auto per_weight = [](int64_t rows, int64_t columns, int64_t salient, double share) {
    const auto bits = static_cast<double>(MixedBinaryBits(rows, columns, salient, false));
    return (bits + static_cast<double>(columns) / share) / static_cast<double>(rows * columns);
  };
  EXPECT_NEAR(per_weight(4096, 4096, 820, 3), 1.6165, 1e-4);
  EXPECT_NEAR(per_weight(4096, 4096, 820, 1), 1.6167, 1e-4);
  EXPECT_NEAR(per_weight(11008, 4096, 820, 2), 1.6145, 1e-4);
  EXPECT_NEAR(per_weight(4096, 11008, 2202, 1), 1.6082, 1e-4);
  const double all = 3 * 4096.0 * 4096 * per_weight(4096, 4096, 820, 3) +
                     4096.0 * 4096 * per_weight(4096, 4096, 820, 1) +
                     2 * 11008.0 * 4096 * per_weight(11008, 4096, 820, 2) +
                     4096.0 * 11008 * per_weight(4096, 11008, 2202, 1);
  EXPECT_NEAR(all / (4 * 4096.0 * 4096 + 3 * 11008.0 * 4096), 1.6138, 5e-5);
}

TEST(MixedBinary, WholeBytesNeverTakeLess) {
  for (const int64_t columns : {1, 5, 64, 172, 576}) {
    for (int64_t salient = 0; salient <= columns; salient += 7) {
      for (const bool mask : {false, true}) {
        const int64_t bits = MixedBinaryBits(9, columns, salient, mask);
        const int64_t bytes = MixedBinaryBytes(9, columns, salient, mask);
        EXPECT_GE(8 * bytes, bits);
        EXPECT_LE(8 * bytes, bits + 9 * (4 + 7) + 4 + 7);
      }
    }
  }
}

}  // namespace
}  // namespace quantry::engine
