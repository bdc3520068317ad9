#include "worker/engine/quant/grid.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "worker/engine/base/error.h"

namespace quantry::engine {
namespace {

struct GridCase {
  const char* name;
  int bits;
  int64_t group_size;
  bool symmetric;
  at::ScalarType scale_dtype;
  bool zero_at_least_one = false;
};

class GridTest : public ::testing::TestWithParam<GridCase> {
 protected:
  GridSpec spec() const {
    return {GetParam().bits, GetParam().group_size, GetParam().symmetric,
            GetParam().zero_at_least_one};
  }
};

TEST_P(GridTest, FakeQuantizeEqualsIntegersDequantized) {
  at::manual_seed(1);
  const at::Tensor weight = at::randn({37, 96});
  const QuantizedLinear linear = QuantizeNearest("w", weight, {}, spec(), GetParam().scale_dtype);
  EXPECT_TRUE(at::equal(linear.Dequantize(), FakeQuantize(weight, spec(), GetParam().scale_dtype)));
}

TEST_P(GridTest, ErrorIsAtMostHalfAStepInsideTheRange) {
  at::manual_seed(2);
  const at::Tensor weight = at::rand({16, 96}) - 0.5;
  const QuantizedLinear linear = QuantizeNearest("w", weight, {}, spec(), GetParam().scale_dtype);
  // A symmetric grid's upper end and a scale rounded down may clip by up to
  // one more step.
  const double steps = GetParam().symmetric ? 1.01 : 0.51 + 0.004 * spec().qmax();
  const at::Tensor scales = linear.scales.repeat_interleave(96 / linear.scales.size(1), 1);
  const at::Tensor error = (linear.Dequantize() - weight).abs() / scales;
  EXPECT_LE(error.max().item<double>(), steps);
  EXPECT_LE(linear.codes.max().item<int>(), spec().qmax());
}

TEST_P(GridTest, ScalesSurviveTheirStorageDtype) {
  at::manual_seed(3);
  const GroupGrid grid = MinMaxGrid(at::randn({8, 96}), spec(), GetParam().scale_dtype);
  for (const at::ScalarType dtype : {GetParam().scale_dtype, at::kHalf}) {
    EXPECT_TRUE(at::equal(grid.scales, grid.scales.to(dtype).to(at::kFloat))) << dtype;
  }
  EXPECT_TRUE(at::equal(grid.zeros, grid.zeros.round()));
}

// T23 of spec/tesseraq.md.
TEST_P(GridTest, DegenerateGroupsStayFinite) {
  const std::vector<at::Tensor> rows = {
      at::zeros({96}),       at::full({96}, 0.7),   at::full({96}, -0.7), at::rand({96}) + 1.0,
      -at::rand({96}) - 1.0, at::full({96}, 1e-12), at::full({96}, 3e30), at::rand({96}) * 1e-9};
  const at::Tensor weight = at::stack(rows);
  const QuantizedLinear linear = QuantizeNearest("w", weight, {}, spec(), GetParam().scale_dtype);
  EXPECT_TRUE(at::isfinite(linear.Dequantize()).all().item<bool>());
  EXPECT_GT(linear.scales.min().item<double>(), 0.0);
  EXPECT_LE(linear.zeros.max().item<int>(), spec().qmax());
  EXPECT_GE(linear.zeros.min().item<int>(), spec().zmin());
  EXPECT_TRUE(at::equal(linear.scales, linear.scales.to(at::kHalf).to(at::kFloat)));
  EXPECT_EQ(linear.Dequantize()[0].abs().max().item<double>(), 0.0);
}

INSTANTIATE_TEST_SUITE_P(Grids, GridTest,
                         ::testing::Values(GridCase{"asym2g32", 2, 32, false, at::kHalf},
                                           GridCase{"asym3channel", 3, -1, false, at::kHalf},
                                           GridCase{"asym4g48bf16", 4, 48, false, at::kBFloat16},
                                           GridCase{"asym6g24", 6, 24, false, at::kHalf},
                                           GridCase{"asym8g96", 8, 96, false, at::kHalf},
                                           GridCase{"one2g32", 2, 32, false, at::kHalf, true},
                                           GridCase{"one3bf16", 3, -1, false, at::kBFloat16, true},
                                           GridCase{"sym2channel", 2, -1, true, at::kHalf},
                                           GridCase{"sym3g32bf16", 3, 32, true, at::kBFloat16},
                                           GridCase{"sym4g16", 4, 16, true, at::kHalf},
                                           GridCase{"sym8channel", 8, -1, true, at::kBFloat16}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(Grid, KnownValues) {
  // lo = -1, hi = 2, qmax = 3: s = 1, z = 1.
  const at::Tensor weight = at::tensor({-1.0F, 0.5F, 1.5F, 2.0F}).view({1, 4});
  const QuantizedLinear linear = QuantizeNearest("w", weight, {}, {2, -1, false}, at::kHalf);
  EXPECT_EQ(linear.scales.item<float>(), 1.0F);
  EXPECT_EQ(linear.zeros.item<int>(), 1);
  // 0.5 rounds to 0 and 1.5 to 2: half to even.
  const at::Tensor want = at::tensor({0, 1, 3, 3}, at::kByte).view({1, 4});
  EXPECT_TRUE(at::equal(linear.codes, want)) << linear.codes;
}

TEST(Grid, AZeroPointOfOneKeepsTheLargestWeight) {
  // lo = 0, hi = 1.5: plainly s = 0.5, z = 0; from 1 on, codes 1 .. 3 span hi.
  const at::Tensor weight = at::tensor({0.0F, 0.25F, 0.75F, 1.5F}).view({1, 4});
  const QuantizedLinear plain = QuantizeNearest("w", weight, {}, {2, -1, false}, at::kHalf);
  EXPECT_EQ(plain.zeros.item<int>(), 0);
  const QuantizedLinear one = QuantizeNearest("w", weight, {}, {2, -1, false, true}, at::kHalf);
  EXPECT_EQ(one.zeros.item<int>(), 1);
  EXPECT_EQ(one.scales.item<float>(), 0.75F);
  EXPECT_EQ(one.Dequantize()[0][3].item<float>(), 1.5F);
}

TEST(Grid, OtherGroupsAreAsWithoutTheLowerBound) {
  at::manual_seed(5);
  const at::Tensor weight = at::randn({64, 96});  // every group has both signs
  const QuantizedLinear plain = QuantizeNearest("w", weight, {}, {3, 48, false}, at::kHalf);
  const QuantizedLinear one = QuantizeNearest("w", weight, {}, {3, 48, false, true}, at::kHalf);
  EXPECT_TRUE(at::equal(plain.codes, one.codes));
  EXPECT_TRUE(at::equal(plain.scales, one.scales));
}

TEST(Grid, Bf16ScalesAreExactInFp16) {
  // 2^-25 .. 2^17 in uneven steps, beyond both ends of fp16.
  const at::Tensor scales = at::pow(2.0, at::linspace(-25, 17, 4001));
  const at::Tensor rounded = RoundScales(scales, at::kBFloat16);
  for (const at::ScalarType dtype : {at::kHalf, at::kBFloat16}) {
    EXPECT_TRUE(at::equal(rounded, rounded.to(dtype).to(at::kFloat))) << dtype;
  }
  EXPECT_GT(rounded.min().item<double>(), 0.0);
}

TEST(Grid, WhatNoOutputCouldHoldIsSeen) {
  QuantizedLinear linear =
      QuantizeNearest("w", at::rand({2, 8}), {}, {4, -1, false, true}, at::kBFloat16);
  EXPECT_NO_THROW(CheckStorable(linear));
  linear.scales.mul_(1.001);
  EXPECT_THROW(CheckStorable(linear), EngineError);
  linear.scales = RoundScales(linear.scales, at::kBFloat16);
  EXPECT_NO_THROW(CheckStorable(linear));
  linear.zeros[1][0] = 0;
  EXPECT_THROW(CheckStorable(linear), EngineError);
}

TEST(Grid, ScalesAtTheEndOfFp16AreCounted) {
  const at::Tensor weight = at::tensor({1.0F, -1.0F, 3e6F, -1.0F, 9e4F, -9e4F}).view({3, 2});
  for (const at::ScalarType dtype : {at::kHalf, at::kBFloat16}) {
    for (const bool symmetric : {false, true}) {
      // The last row takes steps of 2.6e4, the middle one would want 4e5 or twice that.
      EXPECT_EQ(ClippedScales(QuantizeNearest("w", weight, {}, {3, -1, symmetric}, dtype)), 1)
          << dtype << " " << symmetric;
    }
  }
  QuantizedLinear values;
  values.values = weight.to(at::kBFloat16);
  EXPECT_EQ(ClippedScales(values), 0);
}

TEST(Grid, SymmetricScaleIsAbsmaxOverHalfTheLevels) {
  const at::Tensor weight = at::tensor({-1.5F, 0.75F}).view({1, 2});
  const QuantizedLinear linear = QuantizeNearest("w", weight, {}, {2, -1, true}, at::kHalf);
  EXPECT_EQ(linear.scales.item<float>(), 1.0F);  // 1.5 / (3 / 2)
  EXPECT_EQ(linear.zeros.item<int>(), 2);
}

// One rounded up would send -absmax, half a step beyond its code, to the inner one.
TEST(Grid, SymmetricScalesAreNeverRoundedUp) {
  at::manual_seed(9);
  for (const double largest : {1.0, 1e-3, 3e-5, 1e-5}) {
    const at::Tensor hi = at::rand({4000, 1}) * (0.5 * largest) + 0.5 * largest;
    const at::Tensor absmax = hi * (15.0 / 2);  // of 4 bits: scales are hi
    for (const at::ScalarType dtype : {at::kHalf, at::kBFloat16}) {
      const at::Tensor scales = GridOfRange(-absmax, absmax, {4, -1, true}, dtype).scales;
      EXPECT_TRUE((scales <= hi * (1 + 1e-6)).all().item<bool>()) << largest << " " << dtype;
      EXPECT_TRUE((scales >= hi * 0.98 - 0x1p-24).all().item<bool>()) << largest << " " << dtype;
      EXPECT_TRUE(at::equal(scales, RoundScales(scales, dtype))) << largest << " " << dtype;
    }
  }
}

std::string GridError(const GridSpec& spec, const std::vector<NamedWidth>& linears) {
  try {
    CheckGrid(spec, linears);
  } catch (const EngineError& error) {
    EXPECT_EQ(error.reason, "INVALID_SPEC");
    return error.what();
  }
  return "";
}

TEST(CheckGrid, NamesMisfitsAndFittingSizes) {
  const std::vector<NamedWidth> linears = {{"q_proj", 64}, {"down_proj", 172}};
  const std::string message = GridError({4, 64, false}, linears);
  EXPECT_NE(message.find("down_proj (in_features 172)"), std::string::npos) << message;
  EXPECT_EQ(message.find("q_proj"), std::string::npos) << message;
  EXPECT_NE(message.find("2, 4, -1 (per channel)"), std::string::npos) << message;
}

TEST(CheckGrid, RefusesOddBitsAndSizes) {
  EXPECT_NE(GridError({5, 32, false}, {}).find("got 5"), std::string::npos);
  EXPECT_NE(GridError({4, 0, false}, {}).find("got 0"), std::string::npos);
  EXPECT_NE(GridError({4, -2, false}, {}).find("got -2"), std::string::npos);
  EXPECT_EQ(GridError({4, -1, false}, {{"q", 7}}), "");
  EXPECT_EQ(GridError({8, 7, true}, {{"q", 21}}), "");
}

}  // namespace
}  // namespace quantry::engine
