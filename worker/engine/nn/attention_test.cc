#include "worker/engine/nn/attention.h"

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "worker/engine/nn/fused.h"

namespace quantry::engine {
namespace {

struct AttentionCase {
  const char* name;
  int64_t batch, heads, kv_heads, tokens, dim;
};

// Softmax over whole rows, in fp64.
at::Tensor Reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const int64_t share = q.size(1) / k.size(1), tokens = q.size(2);
  const at::Tensor keys = k.to(at::kDouble).repeat_interleave(share, 1);
  const at::Tensor values = v.to(at::kDouble).repeat_interleave(share, 1);
  at::Tensor scores = at::matmul(q.to(at::kDouble), keys.transpose(2, 3)) /
                      std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor later = at::ones({tokens, tokens}, at::kBool).triu(1);
  scores = scores.masked_fill(later, -std::numeric_limits<double>::infinity());
  return at::matmul(at::softmax(scores, -1), values);
}

double RelativeError(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got.to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

class AttentionTest : public ::testing::TestWithParam<AttentionCase> {
 protected:
  void SetUp() override {
    const AttentionCase& c = GetParam();
    at::manual_seed(4);
    // As a block has them: [batch, tokens, heads, dim] seen with heads first.
    const auto make = [&](int64_t heads) {
      return (at::randn({c.batch, c.tokens, heads, c.dim}) * 2).transpose(1, 2);
    };
    q_ = make(c.heads);
    k_ = make(c.kv_heads);
    v_ = make(c.kv_heads);
    if (!FusedAttentionApplies(q_, k_)) GTEST_SKIP() << "no AVX2 here";
  }
  at::Tensor q_, k_, v_;
};

TEST_P(AttentionTest, EqualsTheDefinition) {
  EXPECT_LT(RelativeError(FusedCausalAttention(q_, k_, v_), Reference(q_, k_, v_)), 2e-6);
}

TEST_P(AttentionTest, GradientsEqualTheDefinitions) {
  const at::AutoGradMode with_gradients(true);
  const at::Tensor along = at::randn(q_.sizes());
  const std::vector<at::Tensor> inputs = {
      q_.detach().requires_grad_(), k_.detach().requires_grad_(), v_.detach().requires_grad_()};
  const auto gradients = [&](const at::Tensor& out) {
    return torch::autograd::grad({(out * along).sum()}, inputs);
  };
  const auto got = gradients(FusedCausalAttention(inputs[0], inputs[1], inputs[2]));
  const auto wanted = gradients(Reference(inputs[0], inputs[1], inputs[2]));
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (GetParam().tokens == 1 && i < 2) {  // one key: its probability is 1
      EXPECT_LT(got[i].abs().max().item<double>(), 1e-5);
      continue;
    }
    EXPECT_LT(RelativeError(got[i], wanted[i].to(at::kDouble)), 1e-5) << i;
  }
}

TEST_P(AttentionTest, LaterTokensChangeNothingBefore) {
  const int64_t last = GetParam().tokens - 1;
  const auto both = [&] {
    return at::stack({FusedCausalAttention(q_, k_, v_),
                      FusedCausalAttention(q_, k_, v_, ComputeDtype::kBfloat16)});
  };
  const at::Tensor before = both();
  for (at::Tensor* x : {&q_, &k_, &v_}) {
    *x = x->clone();
    x->select(2, last).add_(3.0);
  }
  EXPECT_TRUE(both().narrow(3, 0, last).equal(before.narrow(3, 0, last)));
}

// Factors have 8 bits, so values and gradients are off by about 2^-9, and not by less.
TEST_P(AttentionTest, Bfloat16RoundsFactors) {
  constexpr double kMost = 0.02, kLeast = 1e-4;
  const auto rough = [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    return FusedCausalAttention(q, k, v, ComputeDtype::kBfloat16);
  };
  if (!MultipliesBfloat16(at::kCPU) || GetParam().dim < 16) {
    EXPECT_TRUE(rough(q_, k_, v_).equal(FusedCausalAttention(q_, k_, v_)));
    return;
  }
  const at::AutoGradMode with_gradients(true);
  const at::Tensor along = at::randn(q_.sizes());
  const std::vector<at::Tensor> inputs = {
      q_.detach().requires_grad_(), k_.detach().requires_grad_(), v_.detach().requires_grad_()};
  const at::Tensor got = rough(inputs[0], inputs[1], inputs[2]);
  const at::Tensor wanted = Reference(inputs[0], inputs[1], inputs[2]);
  const double error = RelativeError(got.detach(), wanted.detach());
  EXPECT_LT(error, kMost);
  EXPECT_GT(error, kLeast);
  const auto slopes = torch::autograd::grad({(got * along).sum()}, inputs);
  const auto exact = torch::autograd::grad({(wanted * along).sum()}, inputs);
  for (size_t i = GetParam().tokens == 1 ? 2 : 0; i < inputs.size(); ++i) {
    EXPECT_LT(RelativeError(slopes[i], exact[i].to(at::kDouble)), 2 * kMost) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest,
                         ::testing::Values(AttentionCase{"tiny", 2, 8, 4, 40, 8},
                                           AttentionCase{"odd", 1, 3, 1, 37, 5},
                                           AttentionCase{"odd_and_wide", 1, 3, 1, 37, 19},
                                           AttentionCase{"wide", 1, 2, 2, 130, 64},
                                           AttentionCase{"one_token", 1, 2, 1, 1, 16},
                                           AttentionCase{"tile", 3, 4, 2, 32, 24}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(FusedTest, LargeScoresStayFinite) {
  at::manual_seed(1);
  const at::Tensor q = at::randn({1, 2, 50, 16}) * 60, k = at::randn({1, 2, 50, 16}) * 60;
  const at::Tensor v = at::randn({1, 2, 50, 16});
  if (!FusedAttentionApplies(q, k)) GTEST_SKIP() << "no AVX2 here";
  EXPECT_LT(RelativeError(FusedCausalAttention(q, k, v), Reference(q, k, v)), 1e-4);
  // Rounding errors of a score are then larger than an exponential's argument may be.
  const at::Tensor huge = FusedCausalAttention(q * 1e8, k * 1e4, v);
  EXPECT_TRUE(huge.isfinite().all().item<bool>());
  EXPECT_LT(RelativeError(huge, Reference(q * 1e8, k * 1e4, v)), 1e-4);
}

// Value and gradients of a fused function against ATen's in fp64.
template <typename Fused, typename Plain>
void ExpectSame(std::vector<at::Tensor> inputs, const Fused& fused, const Plain& plain) {
  const at::AutoGradMode with_gradients(true);
  std::vector<at::Tensor> wide;
  for (at::Tensor& x : inputs) {
    x = x.detach().requires_grad_();
    wide.push_back(x.detach().to(at::kDouble).requires_grad_());
  }
  const at::Tensor got = fused(inputs);
  const at::Tensor wanted = plain(wide);
  EXPECT_LT(RelativeError(got, wanted), 1e-6);
  const at::Tensor along = at::randn(got.sizes());
  const auto got_slopes = torch::autograd::grad({(got * along).sum()}, inputs);
  const auto wanted_slopes = torch::autograd::grad({(wanted * along.to(at::kDouble)).sum()}, wide);
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_LT(RelativeError(got_slopes[i], wanted_slopes[i]), 3e-6) << i;
  }
}

TEST(FusedTest, GatedSiluEqualsItsDefinition) {
  using Inputs = const std::vector<at::Tensor>&;
  at::manual_seed(2);
  ExpectSame(
      {at::randn({3, 7, 29}) * 6, at::randn({3, 7, 29})},
      [](Inputs x) { return GatedSilu(x[0], x[1]); },
      [](Inputs x) { return at::silu(x[0]) * x[1]; });
}

TEST(FusedTest, RmsNormEqualsItsDefinition) {
  using Inputs = const std::vector<at::Tensor>&;
  at::manual_seed(3);
  ExpectSame(
      {at::randn({2, 5, 43}), at::randn(43)}, [](Inputs x) { return RmsNorm(x[0], x[1], 1e-5); },
      [](Inputs x) { return x[0] * (x[0].square().mean(-1, true) + 1e-5).rsqrt() * x[1]; });
}

TEST(FusedTest, RotateEqualsItsDefinition) {
  using Inputs = const std::vector<at::Tensor>&;
  at::manual_seed(5);
  const at::Tensor angles = at::rand({11, 6}) * 6;
  const at::Tensor cos = at::cat({angles, angles}, 1).cos(),
                   sin = at::cat({angles, angles}, 1).sin();
  ExpectSame(
      {at::randn({2, 3, 11, 12})}, [&](Inputs x) { return Rotate(x[0], cos, sin); },
      [&](Inputs x) {
        const at::Tensor half = at::cat({x[0].narrow(3, 6, 6).neg(), x[0].narrow(3, 0, 6)}, 3);
        return x[0] * cos.to(at::kDouble) + half * sin.to(at::kDouble);
      });
}

}  // namespace
}  // namespace quantry::engine
