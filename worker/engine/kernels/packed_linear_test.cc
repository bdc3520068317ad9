#include "worker/engine/kernels/packed_linear.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "worker/engine/base/error.h"
#include "worker/engine/kernels/fixed_point.h"
#include "worker/engine/kernels/testing.h"
#include "worker/engine/testing/threads.h"

namespace quantry::engine {
namespace {

using test::kPackedShapes;
using test::RandomWeight;
using test::Reference;
using test::RelativeError;

TEST(PackedLinear, EqualsTheProductWithTheDequantizedWeight) {
  at::manual_seed(1);
  for (const test::PackedShape& shape : kPackedShapes) {
    const MixedBinaryWeight weight = RandomWeight(shape.rows, shape.columns, shape.salient);
    const at::Tensor x = at::randn({shape.tokens, shape.columns});
    for (const BitKernel* kernel : BitKernels()) {
      const at::Tensor y = PackedLinear(weight, {}, *kernel).Apply(x);
      EXPECT_LT(RelativeError(y, Reference(weight, x)), 1e-6) << shape.name << " " << kernel->name;
    }
  }
}

TEST(PackedLinear, KernelsAgreeToTheLastBit) {
  at::manual_seed(2);
  for (const test::PackedShape& shape : kPackedShapes) {
    const MixedBinaryWeight weight = RandomWeight(shape.rows, shape.columns, shape.salient);
    const at::Tensor x = at::randn({shape.tokens, shape.columns}) * 100;
    const at::Tensor y = PackedLinear(weight, {}, PortableBitKernel()).Apply(x);
    for (const BitKernel* kernel : BitKernels()) {
      EXPECT_TRUE(at::equal(PackedLinear(weight, {}, *kernel).Apply(x), y))
          << shape.name << " " << kernel->name;
    }
  }
}

// Activations all at the largest value fill every digit of the tables and
// every 16-bit lane of the sums.
TEST(PackedLinear, ExtremeActivationsDoNotOverflow) {
  at::manual_seed(3);
  MixedBinaryWeight weight = RandomWeight(32, 6000, 2100);
  weight.signs.fill_(1);
  weight.codes.fill_(15);
  for (const BitKernel* kernel : BitKernels()) {
    for (const double value : {1.0, -1.0, 1e30, 1e-20}) {
      const at::Tensor x = at::full({1, 6000}, value, at::kFloat);
      EXPECT_LT(RelativeError(PackedLinear(weight, {}, *kernel).Apply(x), Reference(weight, x)),
                2e-6)
          << kernel->name << " " << value;
    }
  }
}

TEST(PackedLinear, MassiveActivationsCostNoMoreThanInFp32) {
  at::manual_seed(4);
  const MixedBinaryWeight weight = RandomWeight(128, 1024, 200);
  at::Tensor x = at::randn({4, 1024});
  x.select(1, weight.salient[7].item<int64_t>()).fill_(3000);
  x.select(1, weight.OtherColumns()[11].item<int64_t>()).fill_(-500);
  EXPECT_LT(RelativeError(PackedLinear(weight).Apply(x), Reference(weight, x)), 1e-6);
}

TEST(PackedLinear, SameBitsForEveryThreadCountAndBatch) {
  at::manual_seed(5);
  const MixedBinaryWeight weight = RandomWeight(700, 1500, 301);
  const PackedLinear packed(weight);
  const at::Tensor x = at::randn({2, 10, 1500});
  const auto with = [&](int count) {
    const test::Threads threads(count);
    return packed.Apply(x);
  };
  const at::Tensor one = with(1);
  EXPECT_TRUE(at::equal(one, with(3)));
  EXPECT_EQ(one.sizes(), at::IntArrayRef({2, 10, 700}));
  for (int64_t t = 0; t < 10; ++t) {
    EXPECT_TRUE(at::equal(packed.Apply(x[1][t]), one[1][t])) << t;
  }
}

TEST(PackedLinear, AddsTheBias) {
  at::manual_seed(6);
  const MixedBinaryWeight weight = RandomWeight(48, 96, 20);
  const at::Tensor x = at::randn({3, 96}), bias = at::randn({48});
  EXPECT_LT(RelativeError(PackedLinear(weight, bias).Apply(x), Reference(weight, x) + bias), 1e-6);
}

TEST(PackedLinear, ZeroAndNonFiniteTokensStayApart) {
  at::manual_seed(7);
  test::ExpectTokensStayApart([](const MixedBinaryWeight& weight, const at::Tensor& x) {
    return PackedLinear(weight).Apply(x);
  });
}

TEST(PackedLinear, RefusesActivationsOfAnotherWidth) {
  const PackedLinear packed(RandomWeight(8, 16, 3));
  EXPECT_THROW(packed.Apply(at::zeros({2, 15})), EngineError);
}

// The bits stay 1.6 a weight: tiles add only the filling to 32 rows and 16
// columns.
TEST(PackedLinear, TakesTheBytesOfThePackedWeight) {
  const PackedLinear packed(RandomWeight(4096, 1024, 208));
  EXPECT_EQ(packed.rows(), 4096);
  EXPECT_LT(packed.bytes() * 8, 4096 * 1024 * 1.8);
}

TEST(FixedPoint, RoundsToTheStepAndFillsUp) {
  const std::vector<float> x = {0.5F, -2.0F, 7.0F, -0.25F};
  const std::vector<int32_t> index = {0, 1, 3};
  const std::vector<float> gain = {1.0F, -1.0F, 2.0F};
  std::vector<int32_t> values(5, 99);
  const FixedPoint result = ToFixedPoint(x.data(), index.data(), gain.data(), 3, 5, values.data());
  const int32_t largest = (1 << kValueBits) - 2;
  const int32_t quarter = largest / 4 + 1;  // 2^20 - 0.5, half to even
  EXPECT_EQ(values, (std::vector<int32_t>{quarter, largest, -quarter, 0, 0}));
  EXPECT_FLOAT_EQ(result.step, 2.0F / static_cast<float>(largest));
  EXPECT_EQ(result.sum, largest);
  EXPECT_EQ(result.offset, quarter);
}

}  // namespace
}  // namespace quantry::engine
