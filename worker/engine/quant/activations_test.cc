#include "worker/engine/quant/activations.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "worker/engine/base/error.h"

namespace quantry::engine {
namespace {

TEST(Activations, KnownValues) {
  // lo = -1, hi = 2, qmax = 3: s = 1, z = 1; 0.5 and 1.5 round half to even.
  const at::Tensor x = at::tensor({-1.0F, 0.5F, 1.5F, 2.0F}).view({1, 4});
  const at::Tensor want = at::tensor({-1.0F, 0.0F, 2.0F, 2.0F}).view({1, 4});
  EXPECT_TRUE(at::equal(FakeQuantizeActivations(x, 2), want)) << FakeQuantizeActivations(x, 2);
}

TEST(Activations, T27_EveryTokenHasItsOwnGrid) {
  at::manual_seed(1);
  const at::Tensor x = at::randn({3, 5, 24}) * at::tensor({1e-3F, 1.0F, 1e3F}).view({3, 1, 1});
  const at::Tensor whole = FakeQuantizeActivations(x, 4);
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t t = 0; t < 5; ++t) {
      const at::Tensor row = x[i][t];
      EXPECT_TRUE(at::equal(whole[i][t], FakeQuantizeActivations(row, 4)));
      const double step = (row.max() - row.min()).item<double>() / 15;
      EXPECT_LE((whole[i][t] - row).abs().max().item<double>(), step * 1.001);
    }
  }
}

TEST(Activations, DegenerateTokensStayFinite) {
  const at::Tensor x = at::stack({at::zeros({8}), at::full({8}, 3.0), at::full({8}, -3.0),
                                  at::full({8}, 1e-9), at::linspace(5.0, 6.0, 8)});
  for (const int bits : {2, 4, 8}) {
    const at::Tensor y = FakeQuantizeActivations(x, bits);
    EXPECT_TRUE(at::isfinite(y).all().item<bool>());
    EXPECT_EQ(y[0].abs().max().item<double>(), 0.0);
    // One-signed tokens keep their extreme: the range includes 0.
    EXPECT_NEAR(y[1][0].item<double>(), 3.0, 1e-5);
    EXPECT_NEAR(y[2][0].item<double>(), -3.0, 1e-5);
    EXPECT_NEAR(y[4].max().item<double>(), 6.0, 1e-5);
  }
}

TEST(Activations, MoreBitsLessError) {
  at::manual_seed(2);
  const at::Tensor x = at::randn({64, 96});
  double before = 1e9;
  for (int bits = 2; bits <= 8; ++bits) {
    const double error = (FakeQuantizeActivations(x, bits) - x).norm().item<double>();
    EXPECT_LT(error, before * 0.7) << bits;
    before = error;
  }
  EXPECT_TRUE(FakeQuantizeActivations(x, 16).is_same(x));
}

// T27: the gradient is the identity, and the value the same with autograd on.
TEST(Activations, T27_GradientIsTheIdentity) {
  at::manual_seed(3);
  const at::Tensor x = at::randn({4, 16}).requires_grad_(true);
  const at::Tensor weights = at::randn({4, 16});
  const at::Tensor y = FakeQuantizeActivations(x, 3);
  EXPECT_TRUE(at::equal(y.detach(), FakeQuantizeActivations(x.detach(), 3)));
  const auto gradient = torch::autograd::grad({(y * weights).sum()}, {x});
  EXPECT_TRUE(at::equal(gradient.at(0), weights));
}

TEST(Activations, RefusesOtherBits) {
  for (const int bits : {2, 3, 4, 6, 8, 16}) EXPECT_NO_THROW(CheckActivations({bits}));
  for (const int bits : {-1, 0, 1, 9, 15, 32}) EXPECT_THROW(CheckActivations({bits}), EngineError);
}

}  // namespace
}  // namespace quantry::engine
