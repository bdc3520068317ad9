#include "worker/engine/nn/products.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "worker/engine/nn/fused.h"

namespace quantry::engine {
namespace {

constexpr ComputeDtype kBoth[] = {ComputeDtype::kFloat32, ComputeDtype::kBfloat16};

// fp64 from the rounded factors: what sums without error would give.
at::Tensor Rounded(const at::Tensor& value, ComputeDtype dtype) {
  const at::Tensor fp32 = value.detach();
  return (dtype == ComputeDtype::kBfloat16 ? fp32.to(at::kBFloat16) : fp32).to(at::kDouble);
}

double Difference(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got.to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

// A product that is itself stored in bfloat16 is off by 2^-9 at most.
double Tolerance(ComputeDtype dtype) {
  return dtype == ComputeDtype::kBfloat16 && MultipliesBfloat16(at::kCPU) ? 4e-3 : 1e-6;
}

TEST(ProductsTest, FactorsAreRoundedOnceAndSumsAreNot) {
  at::manual_seed(3);
  const at::Tensor a = at::randn({7, 300}), b = at::randn({300, 5});
  for (const ComputeDtype dtype : kBoth) {
    const at::Tensor got = Product(Factor(a, dtype), Factor(b, dtype));
    EXPECT_EQ(got.scalar_type(), at::kFloat);
    EXPECT_LT(Difference(got, at::mm(Rounded(a, dtype), Rounded(b, dtype))), Tolerance(dtype));
  }
  // The two differ by about 2^-9: neither is the other.
  const at::Tensor rough = Product(Factor(a, kBoth[1]), Factor(b, kBoth[1]));
  EXPECT_GT(Difference(rough, at::mm(a, b).to(at::kDouble)), 1e-4);
}

// A linear with only salient columns, or none, has such a factor (methods/ptq161).
TEST(ProductsTest, AFactorWithoutColumnsMakesZeros) {
  for (const ComputeDtype dtype : kBoth) {
    const at::Tensor got =
        Product(Factor(at::empty({3, 0}), dtype), Factor(at::empty({0, 5}), dtype));
    EXPECT_TRUE(at::equal(got, at::zeros({3, 5}))) << got;
  }
}

// Only a CPU is left the choice: no GPU has been measured.
TEST(ProductsTest, ACpuThatMultipliesBfloat16ChoosesIt) {
  const bool fast = MultipliesBfloat16(at::kCPU);
  EXPECT_EQ(ComputeOn(at::kCPU, std::nullopt),
            fast ? ComputeDtype::kBfloat16 : ComputeDtype::kFloat32);
  EXPECT_EQ(ComputeOn(at::kCUDA, std::nullopt), ComputeDtype::kFloat32);
  for (const at::Device device : {at::Device(at::kCPU), at::Device(at::kCUDA)}) {
    for (const ComputeDtype dtype : kBoth) EXPECT_EQ(ComputeOn(device, dtype), dtype);
  }
}

// What a device that multiplies bfloat16 is given.
TEST(ProductsTest, TakesFactorsInBfloat16) {
  const at::Tensor a = at::randn({4, 30}).to(at::kBFloat16),
                   b = at::randn({3, 30}).to(at::kBFloat16);
  const at::Tensor got = Product(a, b.t());
  EXPECT_EQ(got.scalar_type(), at::kFloat);
  EXPECT_LT(Difference(got, at::mm(a.to(at::kDouble), b.to(at::kDouble).t())), 4e-3);
}

TEST(ProductsTest, ALinearAndItsGradientsUseTheSameFactors) {
  at::manual_seed(4);
  for (const ComputeDtype dtype : kBoth) {
    for (const bool biased : {false, true}) {
      const at::Tensor x = at::randn({2, 9, 40}).requires_grad_();
      const at::Tensor w = at::randn({6, 40}).requires_grad_();
      const at::Tensor b = biased ? at::randn({6}).requires_grad_() : at::Tensor();
      const at::Tensor slope = at::randn({2, 9, 6});
      const at::Tensor y = LinearProduct(x, w, b, dtype);
      y.backward(slope);
      const at::Tensor rows = Rounded(x, dtype).view({18, 40}), columns = Rounded(w, dtype),
                       slopes = Rounded(slope, dtype).view({18, 6});
      at::Tensor wanted = at::mm(rows, columns.t());
      if (biased) wanted = wanted + b.detach().to(at::kDouble);
      const double most = Tolerance(dtype);
      EXPECT_LT(Difference(y.detach().view({18, 6}), wanted), most);
      EXPECT_LT(Difference(x.grad().view({18, 40}), at::mm(slopes, columns)), most);
      EXPECT_LT(Difference(w.grad(), at::mm(slopes.t(), rows)), most);
      if (!biased) continue;
      EXPECT_LT(Difference(b.grad(), slope.view({18, 6}).sum(0).to(at::kDouble)), 1e-6);
    }
  }
}

// As q, k and v have it: outputs of different widths, one with a bias, one that nobody uses.
TEST(ProductsTest, LinearsOfOneInputAreWhatEachIsAlone) {
  at::manual_seed(5);
  const std::vector<int64_t> widths = {6, 3, 17};
  for (const ComputeDtype dtype : kBoth) {
    const at::Tensor x = at::randn({2, 9, 40}), bias = at::randn({3});
    std::vector<at::Tensor> weights, slopes;
    for (const int64_t width : widths) {
      weights.push_back(at::randn({width, 40}));
      slopes.push_back(at::randn({2, 9, width}));
    }
    const auto gradients = [&](bool together) {
      const at::Tensor input = x.clone().requires_grad_();
      std::vector<at::Tensor> own, got, found;
      for (const at::Tensor& weight : weights) own.push_back(weight.clone().requires_grad_());
      if (together) {
        got = LinearProducts(input, own, {{}, bias, {}}, dtype);
      } else {
        got = {LinearProduct(input, own[0], {}, dtype), LinearProduct(input, own[1], bias, dtype),
               LinearProduct(input, own[2], {}, dtype)};
      }
      ((got[0] * slopes[0]).sum() + (got[1] * slopes[1]).sum()).backward();
      for (const at::Tensor& y : got) found.push_back(y.detach());
      found.push_back(input.grad());
      for (size_t i = 0; i < 2; ++i) found.push_back(own[i].grad());
      return found;
    };
    const std::vector<at::Tensor> wanted = gradients(false), got = gradients(true);
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_EQ(got[i].sizes(), wanted[i].sizes());
      EXPECT_LT(Difference(got[i], wanted[i].to(at::kDouble)), Tolerance(dtype)) << i;
    }
  }
}

TEST(ProductsTest, TransposedWeightsAreTakenAsTheyAre) {
  const at::Tensor x = at::randn({5, 8}), w = at::randn({8, 6});
  const ComputeDtype dtype = ComputeDtype::kBfloat16;
  EXPECT_TRUE(at::equal(LinearProduct(x, w.t(), {}, dtype),
                        LinearProduct(x, w.t().contiguous(), {}, dtype)));
  EXPECT_TRUE(at::equal(Factor(w.t(), dtype), Factor(w, dtype).t()));
}

TEST(ProductsTest, AGatedPairIsItsLinearsAndSilu) {
  at::manual_seed(6);
  for (const int64_t width : {16, 172, 3}) {
    const at::Tensor x = at::randn({2, 9, 40}), slope = at::randn({2, 9, width});
    const at::Tensor weights = at::randn({2, width, 40}) * 0.4;
    const auto gradients = [&](bool together) {
      const at::Tensor input = x.clone().requires_grad_();
      const at::Tensor gate = weights[0].clone().requires_grad_();
      const at::Tensor up = weights[1].clone().requires_grad_();
      const auto apart = LinearProducts(input, {gate, up}, {{}, {}}, ComputeDtype::kBfloat16);
      const at::Tensor y =
          together ? GatedSiluProducts(input, gate, up) : GatedSilu(apart[0], apart[1]);
      y.backward(slope);
      return std::vector<at::Tensor>{y.detach(), input.grad(), gate.grad(), up.grad()};
    };
    const std::vector<at::Tensor> wanted = gradients(false), got = gradients(true);
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_TRUE(at::equal(got[i], wanted[i])) << i << ", " << width;
    }
  }
}

TEST(ProductsTest, NothingIsComputedThatNobodyWants) {
  const at::Tensor x = at::randn({3, 4}), w = at::randn({2, 4}).requires_grad_();
  const at::Tensor y = LinearProduct(x, w, {}, ComputeDtype::kBfloat16);
  y.backward(at::ones_like(y));
  EXPECT_FALSE(x.grad().defined());
  EXPECT_EQ(w.grad().sizes(), w.sizes());
}

}  // namespace
}  // namespace quantry::engine
