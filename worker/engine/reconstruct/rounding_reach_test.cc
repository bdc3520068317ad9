// Roundings that may go two steps, and that those of one step are the paper's.
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "worker/engine/quant/grid.h"
#include "worker/engine/reconstruct/rectified_sigmoid.h"
#include "worker/engine/reconstruct/rounding_schedule.h"
#include "worker/engine/reconstruct/rounding_window.h"
#include "worker/engine/reconstruct/soft_rounding.h"
#include "worker/engine/reconstruct/testing/definition.h"

namespace quantry::engine {
namespace {

using test::RandomWeight;

constexpr float kReachInfinity = std::numeric_limits<float>::infinity();
constexpr int kReach = 2;
constexpr int64_t kGroup = 16;
const GridSpec kReachGrid = {3, kGroup, false};

SoftRounding MakeReach(const at::Tensor& weight, const GridSpec& spec = kReachGrid) {
  return {weight, MinMaxGrid(weight, spec, at::kHalf), spec, ScaleCurve::kRectifiedSigmoid, kReach};
}

// The definition in ATen and autograd: rounding_window.h.
struct ReachReference {
  explicit ReachReference(const at::Tensor& weight) {
    const GroupGrid found = MinMaxGrid(weight, kReachGrid, at::kHalf);
    w = weight.to(at::kDouble).view({-1, kGroup});
    s = found.scales.to(at::kDouble).view({-1, 1});
    z = found.zeros.to(at::kDouble).view({-1, 1});
    const at::Tensor fraction = w / s - (w / s).floor();
    nu = (3.6 / (fraction + 1.3) - 1).log().neg() * 3;
    v = at::zeros_like(s);
  }

  at::Tensor Integer() const {
    return (w / s).floor() + (at::sigmoid(nu / 3) * 3.6 - 1.3).clamp(-1, 2) + z;
  }
  at::Tensor Soft() const {
    const at::Tensor factor = 2 * (at::sigmoid(v) * 1.2 - 0.1).clamp(0, 1);
    return (Integer().clamp(0, kReachGrid.qmax()) - z) * s * factor;
  }

  at::Tensor w, s, z, nu, v;
};

TEST(RoundingWindowTest, ReachOneIsThePaperToTheBit) {
  const RoundingWindow window(1);
  for (float nu = -6; nu <= 6; nu += 1.0F / 128) {
    const float value = RectifiedSigmoid(nu);
    EXPECT_EQ(window.Value(nu), value);
    EXPECT_EQ(window.Slope(nu), RectifiedSigmoidSlope(nu));
    EXPECT_EQ(window.Score(nu), std::abs(value - 0.5F));
    EXPECT_EQ(window.Middle(value), 0.5F);
    EXPECT_EQ(window.Decision(nu), nu > 0 ? 1 : 0);
  }
  for (float y = 0; y <= 1; y += 1.0F / 128) {
    EXPECT_EQ(window.Logit(y), InverseRectifiedSigmoid(y));
  }
  for (const float nu : {kReachInfinity, -kReachInfinity, std::nextafter(0.0F, 1.0F), -1e-30F}) {
    EXPECT_EQ(window.Decision(nu), nu > 0 ? 1 : 0);
  }
  EXPECT_EQ(window.HardLogit(1), kReachInfinity);
  EXPECT_EQ(window.HardLogit(0), -kReachInfinity);
}

TEST(RoundingWindowTest, T1_ReachTwoCoversTheWindowAndInverts) {
  const RoundingWindow window(kReach);
  EXPECT_EQ(window.Value(0), 0.5F);
  EXPECT_FLOAT_EQ(window.Slope(0), RectifiedSigmoidSlope(0));
  EXPECT_EQ(window.Value(kReachInfinity), 2.0F);
  EXPECT_EQ(window.Value(-kReachInfinity), -1.0F);
  for (float h = -1; h <= 2; h += 1.0F / 64) {
    EXPECT_NEAR(window.Value(window.Logit(h)), h, 2e-6);
  }
  for (float nu = -7; nu <= 7; nu += 1.0F / 32) {
    const double by_difference =
        (static_cast<double>(window.Value(nu + 0.01F)) - window.Value(nu - 0.01F)) / 0.02;
    EXPECT_NEAR(window.Slope(nu), by_difference, 1e-4) << nu;
  }
  EXPECT_EQ(window.Slope(8), 0);
}

TEST(RoundingWindowTest, DecidesForTheNearestInteger) {
  const RoundingWindow window(kReach);
  for (float nu = -9; nu <= 9; nu += 1.0F / 64) {
    const float h = window.Value(nu);
    EXPECT_LE(std::abs(h - static_cast<float>(window.Decision(nu))), 0.5F + 1e-6F) << nu;
    EXPECT_NEAR(window.Score(nu), 0.5 - std::abs(h - std::nearbyint(h)), 1e-6) << nu;
  }
  EXPECT_EQ(window.Decision(0), 0);  // of two the lower
  for (const int decision : {-1, 0, 1, 2}) {
    const float logit = window.HardLogit(decision);
    EXPECT_TRUE(RoundingWindow::IsHardLogit(logit));
    EXPECT_EQ(window.HardDecision(logit), decision);
  }
}

TEST(RoundingReachTest, T2_StartsAtTheWeight) {
  const at::Tensor weight = RandomWeight(32, 64);
  const GroupGrid grid = MinMaxGrid(weight, kReachGrid, at::kHalf);
  const SoftRounding linear = MakeReach(weight);
  const at::Tensor s = grid.scales.repeat_interleave(kGroup, 1);
  const at::Tensor position = weight / s + grid.zeros.repeat_interleave(kGroup, 1);
  const at::Tensor inside = (position >= 0).logical_and_(position <= 7.0);
  const at::Tensor error = (linear.weight() - weight).abs() / s;
  EXPECT_GT(inside.to(at::kFloat).mean().item<double>(), 0.8);
  EXPECT_LE(error.masked_select(inside).max().item<double>(), 1e-5);
  EXPECT_LE(error.max().item<double>(), 0.51);
  // Also as the logits say it.
  SoftRounding again = MakeReach(weight);
  again.Restore(linear.logits(), linear.scale_logits());
  EXPECT_LE(((again.weight() - weight).abs() / s).masked_select(inside).max().item<double>(), 1e-5);
}

TEST(RoundingReachTest, T4_AutogradMatchesFiniteDifferences) {
  ReachReference reference(RandomWeight(4, 32));
  const at::Tensor direction = at::randn({8, kGroup}, at::kDouble);
  reference.nu[1][2] = 9.0;  // saturated
  reference.nu.requires_grad_(true);
  (reference.Soft() * direction).sum().backward();
  const at::Tensor gradient = reference.nu.grad().clone();
  EXPECT_EQ(gradient[1][2].item<double>(), 0);
  const c10::AutoGradMode no_gradients(false);
  const auto value = [&] { return (reference.Soft() * direction).sum().item<double>(); };
  const double h = 1e-6;
  for (int64_t r = 0; r < 8; ++r) {
    for (const int64_t column : {1, 5, 11}) {
      at::Tensor entry = reference.nu[r][column];
      const double before = entry.item<double>();
      entry.fill_(before + h);
      const double up = value();
      entry.fill_(before - h);
      const double down = value();
      entry.fill_(before);
      const double wanted = gradient[r][column].item<double>();
      EXPECT_NEAR((up - down) / (2 * h), wanted, 1e-7 + 1e-5 * std::abs(wanted));
    }
  }
}

// The fused step does what autograd and Adam do to the definition, past the
// neighbours and at the ends of the grid too.
TEST(RoundingReachTest, T4_StepsMatchAutogradAndAdam) {
  const at::Tensor weight = RandomWeight(6, 48);
  SoftRounding linear = MakeReach(weight);
  ReachReference reference(weight);
  const StepRates rates{0.2, 0.01, 1e-3, 0, true};
  test::DefinitionTrainer trainer(reference);
  const at::Tensor drift = at::randn({6, 48});  // so that some go far
  for (int t = 1; t <= 30; ++t) {
    const at::Tensor gradient = drift + at::randn({6, 48}) * 0.5;
    trainer.Step(gradient, rates);
    linear.Step(gradient, rates);
  }
  const at::Tensor moved = reference.Integer() - (reference.w / reference.s) - reference.z;
  EXPECT_GT(moved.max().item<double>(), 1.2) << "none went past its neighbours";
  EXPECT_LT(moved.min().item<double>(), -1.2);
  const at::Tensor nu = linear.logits().view({-1, kGroup}).to(at::kDouble);
  EXPECT_LT((nu - reference.nu).abs().max().item<double>(), 3e-3);
  EXPECT_LT((linear.weight().view({-1, kGroup}) - reference.Soft()).abs().max().item<double>(),
            5e-4 * reference.s.max().item<double>());
}

// Trained roundings of a random weight, and how far they went from floor(W / s).
struct Wandered {
  Wandered() : weight(RandomWeight(32, 64)), linear(MakeReach(weight)) {
    at::manual_seed(5);
    const at::Tensor along = at::randn({32, 64});
    for (int step = 0; step < 60; ++step) {
      linear.Step(along + at::randn({32, 64}), {0.1, 0.01, 1e-4, 0, true});
    }
  }
  // [32, 64] of the codes of the inner part of the grid.
  at::Tensor Moves(const QuantizedLinear& done) const {
    const GroupGrid grid = MinMaxGrid(weight, kReachGrid, at::kHalf);
    const at::Tensor base = (weight / grid.scales.repeat_interleave(kGroup, 1)).floor() +
                            grid.zeros.repeat_interleave(kGroup, 1);
    const at::Tensor inner = (base >= 1).logical_and(base <= kReachGrid.qmax() - 2);
    return (done.codes.to(at::kFloat) - base).masked_select(inner);
  }

  at::Tensor weight;
  SoftRounding linear;
};

TEST(RoundingReachTest, T15_CodesLieWithinReachAndUseIt) {
  Wandered wandered;
  SoftRounding& linear = wandered.linear;
  const at::Tensor hard = linear.HardWeight();
  linear.HardenAll();
  EXPECT_TRUE(hard.equal(linear.weight()));
  EXPECT_EQ(linear.live(), 0);
  const QuantizedLinear done = linear.Finish("x", {}, at::kHalf);
  EXPECT_LE(done.codes.max().item<int>(), kReachGrid.qmax());
  const at::Tensor moves = wandered.Moves(done);
  EXPECT_GE(moves.min().item<float>(), -1);
  EXPECT_LE(moves.max().item<float>(), 2);
  for (const int to : {-1, 0, 1, 2}) EXPECT_GT(moves.eq(to).sum().item<int64_t>(), 10) << to;
  const GroupGrid grid = MinMaxGrid(wandered.weight, kReachGrid, at::kHalf);
  const at::Tensor nearest = RoundToGrid(wandered.weight, kReachGrid, grid);
  EXPECT_EQ(linear.flip_ratio(), done.codes.ne(nearest).to(at::kDouble).mean().item<double>());
}

TEST(RoundingReachTest, T6_T7_T9_HardeningTakesTheNearestToAnInteger) {
  const at::Tensor weight = RandomWeight(64, 128);
  SoftRounding linear = MakeReach(weight);
  const RoundingWindow window(kReach);
  const auto score = [&](const at::Tensor& logits) {
    at::Tensor scores = at::empty_like(logits);
    for (int64_t i = 0; i < logits.numel(); ++i) {
      scores.view(-1).data_ptr<float>()[i] = window.Score(logits.view(-1).data_ptr<float>()[i]);
    }
    return scores;
  };
  const auto hard_of = [](const at::Tensor& logits) { return logits.abs() > 1e30; };
  at::Tensor before = linear.logits();
  at::manual_seed(9);
  const at::Tensor drift = at::randn({64, 128});
  for (const double tau : TwentyStageSchedule()) {
    linear.Harden(tau);
    const at::Tensor after = linear.logits();
    const at::Tensor was_hard = hard_of(before), soft = hard_of(after).logical_not();
    // Those that saturate at the ends of the window count as decided.
    EXPECT_NEAR(linear.hard_fraction(), 1 - tau, 0.02) << tau;
    EXPECT_TRUE(after.eq(before).logical_or(was_hard.logical_not()).all().item<bool>());
    const at::Tensor fresh = hard_of(after).logical_and(was_hard.logical_not());
    if (fresh.any().item<bool>()) {
      const at::Tensor scores = score(before);
      EXPECT_GE(scores.masked_select(fresh).min().item<float>(),
                scores.masked_select(soft).max().item<float>() - 1e-6F);
    }
    linear.Step(drift, {0.2, 0.01, 1e-4, 0, true});
    before = linear.logits();
    EXPECT_TRUE(before.eq(after).logical_or(soft).all().item<bool>());
  }
}

TEST(RoundingReachTest, StateRestoresExactlyWithAllFourDecisions) {
  Wandered one;
  one.linear.Harden(0.4);
  SoftRounding two = MakeReach(one.weight);
  two.Restore(one.linear.logits(), one.linear.scale_logits());
  EXPECT_TRUE(two.weight().equal(one.linear.weight()));
  EXPECT_EQ(two.live(), one.linear.live());
  for (SoftRounding* linear : {&one.linear, &two}) {
    at::manual_seed(1);
    linear->Harden(0.2);
    for (int i = 0; i < 5; ++i) linear->Step(at::randn({32, 64}), {0.02, 0.02, 1e-4, 0, true});
    linear->HardenAll();
  }
  EXPECT_TRUE(two.weight().equal(one.linear.weight()));
  EXPECT_TRUE(
      two.Finish("x", {}, at::kHalf).codes.equal(one.linear.Finish("x", {}, at::kHalf).codes));
}

TEST(RoundingReachTest, HardenToNearestForgetsWhatWasLearned) {
  Wandered wandered;
  wandered.linear.Harden(0.5);
  wandered.linear.HardenToNearest();
  EXPECT_EQ(wandered.linear.flip_ratio(), 0);
  EXPECT_EQ(wandered.linear.live(), 0);
  EXPECT_TRUE(wandered.linear.factors().eq(1).all().item<bool>());
  const GroupGrid grid = MinMaxGrid(wandered.weight, kReachGrid, at::kHalf);
  const QuantizedLinear done = wandered.linear.Finish("x", {}, at::kHalf);
  EXPECT_TRUE(done.codes.equal(RoundToGrid(wandered.weight, kReachGrid, grid)));
  EXPECT_TRUE(done.scales.equal(grid.scales));
  EXPECT_TRUE(wandered.linear.weight().equal(done.Dequantize()));
}

}  // namespace
}  // namespace quantry::engine
