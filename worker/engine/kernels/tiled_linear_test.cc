#include "worker/engine/kernels/tiled_linear.h"

#include <gtest/gtest.h>

#include "worker/engine/base/error.h"
#include "worker/engine/kernels/packed_linear.h"
#include "worker/engine/kernels/testing.h"
#include "worker/engine/testing/devices.h"

namespace quantry::engine {
namespace {

using test::RandomWeight;
using test::Reference;
using test::RelativeError;

class TiledLinearTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    QUANTRY_TAKE_DEVICE(device_, GetParam());
    at::manual_seed(8);
  }

  // The product on the device, on the CPU again.
  at::Tensor Product(const MixedBinaryWeight& weight, const at::Tensor& x,
                     const at::Tensor& bias = {},
                     int64_t tile_bytes = TiledLinear::kTileBytes) const {
    return TiledLinear(weight, bias, device_, tile_bytes).Apply(x.to(device_)).cpu();
  }

  at::Device device_ = at::kCPU;
};

INSTANTIATE_TEST_SUITE_P(Devices, TiledLinearTest, test::kDevices,
                         [](const auto& name) { return std::string(name.param); });

// With one row a tile, a few (the last one smaller), and all in one.
TEST_P(TiledLinearTest, EqualsTheDequantizedProductAndThePortableKernel) {
  for (const test::PackedShape& shape : test::kPackedShapes) {
    const MixedBinaryWeight weight = RandomWeight(shape.rows, shape.columns, shape.salient);
    const at::Tensor x = at::randn({shape.tokens, shape.columns});
    const at::Tensor portable = PackedLinear(weight, {}, PortableBitKernel()).Apply(x);
    for (const int64_t rows_a_tile : {1, 7, 1 << 20}) {
      const at::Tensor y = Product(weight, x, {}, rows_a_tile * 5 * shape.columns);
      EXPECT_LT(RelativeError(y, Reference(weight, x)), 1e-6) << shape.name << " " << rows_a_tile;
      EXPECT_LT(RelativeError(y, portable.to(at::kDouble)), 1e-6) << shape.name;
    }
  }
}

TEST_P(TiledLinearTest, ATileTakesNoMoreThanItsBytes) {
  const MixedBinaryWeight weight = RandomWeight(95, 577, 117);
  EXPECT_EQ(TiledLinear(weight, {}, device_).tile_rows(), 95);
  EXPECT_EQ(TiledLinear(weight, {}, device_, 10 * 5 * 577).tile_rows(), 10);
  EXPECT_EQ(TiledLinear(weight, {}, device_, 10 * 5 * 577 - 1).tile_rows(), 9);
  EXPECT_EQ(TiledLinear(weight, {}, device_, 1).tile_rows(), 1);
}

// Thousands of equal terms are where sums in fp32 are at their worst: a dense
// product's of the same device are the measure.
TEST_P(TiledLinearTest, ExtremeActivationsDoNotOverflow) {
  MixedBinaryWeight weight = RandomWeight(32, 6000, 2100);
  weight.signs.fill_(1);
  weight.codes.fill_(15);
  for (const double value : {1.0, -1.0, 1e30, 1e-20}) {
    const at::Tensor x = at::full({1, 6000}, value, at::kFloat);
    const at::Tensor wanted = Reference(weight, x);
    const at::Tensor dense = at::mm(x.to(device_), weight.Dequantize().to(device_).t()).cpu();
    EXPECT_LT(RelativeError(Product(weight, x), wanted), 1e-6 + 2 * RelativeError(dense, wanted))
        << value;
  }
}

TEST_P(TiledLinearTest, MassiveActivationsCostNoMoreThanInFp32) {
  const MixedBinaryWeight weight = RandomWeight(128, 1024, 200);
  at::Tensor x = at::randn({4, 1024});
  x.select(1, weight.salient[7].item<int64_t>()).fill_(3000);
  x.select(1, weight.OtherColumns()[11].item<int64_t>()).fill_(-500);
  EXPECT_LT(RelativeError(Product(weight, x), Reference(weight, x)), 1e-6);
}

TEST_P(TiledLinearTest, AddsTheBiasAndKeepsTheShape) {
  const MixedBinaryWeight weight = RandomWeight(48, 96, 20);
  const at::Tensor x = at::randn({2, 3, 96}), bias = at::randn({48});
  const at::Tensor y = Product(weight, x, bias, 4000);
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 3, 48}));
  EXPECT_LT(RelativeError(y, Reference(weight, x) + bias), 1e-6);
  EXPECT_EQ(Product(weight, x[0][0]).sizes(), at::IntArrayRef({48}));
}

TEST_P(TiledLinearTest, ZeroAndNonFiniteTokensStayApart) {
  test::ExpectTokensStayApart(
      [&](const MixedBinaryWeight& weight, const at::Tensor& x) { return Product(weight, x); });
}

TEST_P(TiledLinearTest, RefusesActivationsOfAnotherWidth) {
  const TiledLinear tiled(RandomWeight(8, 16, 3), {}, device_);
  EXPECT_THROW(tiled.Apply(at::zeros({2, 15}, device_)), EngineError);
}

// The bits stay 1.6 a weight: the rows are filled up to 32 bits alone.
TEST_P(TiledLinearTest, TakesTheBytesOfThePackedWeight) {
  const TiledLinear tiled(RandomWeight(4096, 1024, 208), {}, device_);
  EXPECT_EQ(tiled.rows(), 4096);
  EXPECT_LT(tiled.bytes() * 8, 4096 * 1024 * 1.85);
}

}  // namespace
}  // namespace quantry::engine
