#include "worker/engine/reconstruct/soft_rounding.h"

#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "worker/engine/base/error.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/quant/packing.h"
#include "worker/engine/reconstruct/order_statistic.h"
#include "worker/engine/reconstruct/rectified_sigmoid.h"
#include "worker/engine/reconstruct/rounding_schedule.h"
#include "worker/engine/reconstruct/testing/definition.h"

namespace quantry::engine {
namespace {

using test::RandomWeight;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const GridSpec kGrid = {2, 16, false};

SoftRounding Make(const at::Tensor& weight, const GridSpec& spec = kGrid,
                  ScaleCurve curve = ScaleCurve::kRectifiedSigmoid) {
  return SoftRounding(weight, MinMaxGrid(weight, spec, at::kHalf), spec, curve);
}

// The definition itself, in ATen and autograd (spec: tesseraq.md 2.1, 3).
struct Reference {
  Reference(const at::Tensor& weight, const GridSpec& grid) : spec(grid) {
    const GroupGrid found = MinMaxGrid(weight, spec, at::kHalf);
    w = weight.to(at::kDouble).view({-1, spec.group_size});
    s = found.scales.to(at::kDouble).view({-1, 1});
    z = found.zeros.to(at::kDouble).view({-1, 1});
    const at::Tensor fraction = w / s - (w / s).floor();
    nu = (1.2 / (fraction + 0.1) - 1).log().neg();
    v = at::zeros_like(s);
  }

  static at::Tensor Rsig(const at::Tensor& t) { return (at::sigmoid(t) * 1.2 - 0.1).clamp(0, 1); }

  at::Tensor Soft() const {
    const at::Tensor u = (w / s).floor() + Rsig(nu) + z;
    return (u.clamp(0, static_cast<double>(spec.qmax())) - z) * s * 2 * Rsig(v);
  }

  GridSpec spec;
  at::Tensor w, s, z, nu, v;
};

TEST(RectifiedSigmoidTest, T1_InverseIsExactAndEndsAreFinite) {
  for (float y = 0; y <= 1.0F; y += 1.0F / 64) {
    EXPECT_NEAR(RectifiedSigmoid(InverseRectifiedSigmoid(y)), y, 1e-6);
  }
  EXPECT_EQ(RectifiedSigmoid(0), 0.5F);
  EXPECT_EQ(RectifiedSigmoid(kInfinity), 1.0F);
  EXPECT_EQ(RectifiedSigmoid(-kInfinity), 0.0F);
  EXPECT_NEAR(InverseRectifiedSigmoid(0), -std::log(11.0), 1e-5);
  EXPECT_NEAR(InverseRectifiedSigmoid(1), std::log(11.0), 1e-5);
  for (const float t : {kInfinity, -kInfinity, 2.5F, -2.5F}) {
    EXPECT_EQ(RectifiedSigmoidSlope(t), 0.0F);
  }
}

TEST(SoftRoundingTest, T2_StartsAtTheWeight) {
  const at::Tensor weight = RandomWeight(32, 64);
  const GroupGrid grid = MinMaxGrid(weight, kGrid, at::kHalf);
  const SoftRounding linear = Make(weight);
  const at::Tensor s = grid.scales.repeat_interleave(16, 1);
  const at::Tensor position = weight / s + grid.zeros.repeat_interleave(16, 1);
  const at::Tensor inside = (position >= 0).logical_and_(position <= 3.0);
  const at::Tensor error = (linear.weight() - weight).abs() / s;
  EXPECT_GT(inside.to(at::kFloat).mean().item<double>(), 0.8);
  EXPECT_LE(error.masked_select(inside).max().item<double>(), 1e-5);
  EXPECT_LE(error.max().item<double>(), 0.51);
}

TEST(SoftRoundingTest, T3_FactorsStartAtOne) {
  for (const auto curve : {ScaleCurve::kRectifiedSigmoid, ScaleCurve::kExponential}) {
    EXPECT_TRUE(Make(RandomWeight(4, 32), kGrid, curve).factors().eq(1).all().item<bool>());
  }
}

TEST(ReferenceTest, T4_AutogradMatchesFiniteDifferences) {
  Reference reference(RandomWeight(4, 32), kGrid);
  const at::Tensor direction = at::randn({8, 16}, at::kDouble);
  reference.nu[0][3] = std::numeric_limits<double>::infinity();
  reference.nu[1][2] = 3.0;  // saturated
  reference.nu.requires_grad_(true);
  reference.v.requires_grad_(true);
  (reference.Soft() * direction).sum().backward();
  const at::Tensor nu_gradient = reference.nu.grad().clone();
  const at::Tensor v_gradient = reference.v.grad().clone();
  EXPECT_FALSE(nu_gradient.isnan().any().item<bool>());
  EXPECT_EQ(nu_gradient[0][3].item<double>(), 0);
  EXPECT_EQ(nu_gradient[1][2].item<double>(), 0);
  const c10::AutoGradMode no_gradients(false);
  const auto value = [&] { return (reference.Soft() * direction).sum().item<double>(); };
  const double h = 1e-6;
  for (int64_t r = 0; r < 8; ++r) {
    for (at::Tensor entry : {reference.v[r][0], reference.nu[r][5], reference.nu[r][11]}) {
      const double before = entry.item<double>();
      entry.fill_(before + h);
      const double up = value();
      entry.fill_(before - h);
      const double down = value();
      entry.fill_(before);
      const bool scale = entry.data_ptr() == reference.v[r][0].data_ptr();
      const int64_t column = entry.data_ptr() == reference.nu[r][5].data_ptr() ? 5 : 11;
      const double wanted =
          scale ? v_gradient[r][0].item<double>() : nu_gradient[r][column].item<double>();
      EXPECT_NEAR((up - down) / (2 * h), wanted, 1e-7 + 1e-5 * std::abs(wanted));
    }
  }
}

// The fused step does what autograd and Adam do to the definition.
TEST(SoftRoundingTest, T4_StepsMatchAutogradAndAdam) {
  const at::Tensor weight = RandomWeight(6, 48);
  SoftRounding linear = Make(weight);
  Reference reference(weight, kGrid);
  const StepRates rates{0.02, 0.01, 1e-3, 0, true};
  test::DefinitionTrainer trainer(reference);
  for (int t = 1; t <= 20; ++t) {
    const at::Tensor gradient = at::randn({6, 48});
    trainer.Step(gradient, rates);
    linear.Step(gradient, rates);
  }
  const at::Tensor nu = linear.logits().view({-1, 16}).to(at::kDouble);
  EXPECT_LT((nu - reference.nu).abs().max().item<double>(), 2e-4);
  EXPECT_LT((linear.scale_logits().view({-1, 1}) - reference.v).abs().max().item<double>(), 1e-4);
  EXPECT_LT((linear.weight().view({-1, 16}) - reference.Soft()).abs().max().item<double>(), 2e-5);
}

// A linear with entries of every kind: soft, saturated (|nu| > 2.398), hard and
// out of range.
struct EveryKind {
  explicit EveryKind(ScaleCurve curve) : weight(RandomWeight(32, 64)), curve(curve) {
    SoftRounding fresh = Make(weight, kGrid, curve);
    fresh.Harden(0.7);
    nu = fresh.logits();
    hard = nu.isinf();
    const at::Tensor drawn = at::randn_like(nu) * 1.5;
    // Not within a difference's reach of the corner where the clamp takes hold.
    const at::Tensor smooth = drawn.abs().sub(std::log(11.0)).abs().gt(0.05);
    nu = at::where(hard, nu, at::where(smooth, drawn, at::ones_like(drawn)));
    saturated = nu.abs().gt(std::log(11.0)).logical_and(hard.logical_not());
    v = at::randn({32, 4}) * 0.5;
    const GroupGrid grid = MinMaxGrid(weight, kGrid, at::kHalf);
    const at::Tensor base = (weight / grid.scales.repeat_interleave(16, 1)).floor() +
                            grid.zeros.repeat_interleave(16, 1);
    outside = base.lt(0).logical_or(base.ge(3));
  }

  SoftRounding At(const at::Tensor& logits, const at::Tensor& scale_logits) const {
    SoftRounding linear = Make(weight, kGrid, curve);
    linear.Restore(logits, scale_logits);
    return linear;
  }

  at::Tensor weight;
  ScaleCurve curve;
  at::Tensor nu, v;
  at::Tensor hard, saturated, outside;
};

// What gradient Adam was given in a first step at rate 1 that moved a variable
// from `before`: the step is g / (|g| + eps), so a g about as small as eps can
// be read off it.
at::Tensor GradientTaken(const at::Tensor& before, const at::Tensor& after) {
  const at::Tensor moved = (before - after).to(at::kDouble);
  return moved * 1e-8 / (1 - moved.abs());
}

// The step's own gradient against differences of the weights it trains.
TEST(SoftRoundingTest, T4_GradientsMatchFiniteDifferences) {
  for (const auto curve : {ScaleCurve::kRectifiedSigmoid, ScaleCurve::kExponential}) {
    const EveryKind at(curve);
    for (const at::Tensor& kind : {at.hard, at.saturated, at.outside}) {
      EXPECT_GT(kind.sum().item<int64_t>(), 20);
    }
    const at::Tensor still = at.hard.logical_or(at.saturated).logical_or(at.outside);
    EXPECT_GT(still.logical_not().sum().item<int64_t>(), 500);
    const at::Tensor direction = at::randn({32, 64}) * 1e-8;  // dL/dW~
    SoftRounding linear = at.At(at.nu, at.v);
    linear.Step(direction, {1, 1, 0, 0, true});
    const at::Tensor nu = linear.logits();
    EXPECT_TRUE(at::equal(nu.masked_select(still), at.nu.masked_select(still)));
    EXPECT_FALSE(nu.isnan().any().item<bool>());

    const float h = 0.01F;
    const auto slope = [&](const at::Tensor& up, const at::Tensor& down) {
      return (up - down).to(at::kDouble) / (2.0 * h) * direction;  // of each weight's share of L
    };
    const at::Tensor wanted =
        slope(at.At(at.nu + h, at.v).weight(), at.At(at.nu - h, at.v).weight())
            .masked_fill(at.hard, 0);
    const at::Tensor got = GradientTaken(at.nu, nu).masked_fill(at.hard, 0);
    EXPECT_TRUE(at::allclose(got, wanted, 2e-3, 2e-12)) << (got - wanted).abs().max();

    const at::Tensor wanted_scale =
        slope(at.At(at.nu, at.v + h).weight(), at.At(at.nu, at.v - h).weight())
            .view({32, 4, 16})
            .sum(-1);
    const at::Tensor got_scale = GradientTaken(at.v, linear.scale_logits());
    EXPECT_TRUE(at::allclose(got_scale, wanted_scale, 2e-3, 2e-12))
        << (got_scale - wanted_scale).abs().max();
  }
}

TEST(SoftRoundingTest, T6_T7_T8_T9_HardeningFollowsTheSchedule) {
  const at::Tensor weight = RandomWeight(64, 128);
  SoftRounding linear = Make(weight);
  const double count = 64 * 128;
  const GroupGrid grid = MinMaxGrid(weight, kGrid, at::kHalf);
  const at::Tensor nearest = RoundToGrid(weight, kGrid, grid);
  at::Tensor before = linear.logits();
  bool first = true;
  for (const double tau : TwentyStageSchedule()) {
    linear.Harden(tau);
    EXPECT_NEAR(linear.hard_fraction(), 1 - tau, 2 / count) << tau;
    const at::Tensor after = linear.logits();
    const at::Tensor was_hard = before.isinf();
    EXPECT_TRUE(after.eq(before).logical_or(was_hard.logical_not()).all().item<bool>());
    // The newly frozen ones are the largest |nu| among the soft ones.
    const at::Tensor fresh = after.isinf().logical_and(was_hard.logical_not());
    const at::Tensor soft = after.isinf().logical_not();
    EXPECT_GE(before.abs().masked_select(fresh).min().item<float>(),
              before.abs().masked_select(soft).max().item<float>());
    // They are frozen to where they leaned: up when rsig > 0.5.
    const at::Tensor leaned = Reference::Rsig(before) > 0.5;
    EXPECT_TRUE(after.gt(0).eq(leaned).logical_or(fresh.logical_not()).all().item<bool>());
    if (first) {  // nothing was trained: only decisions that rounding agrees with
      const QuantizedLinear codes = linear.Finish("x", {}, at::kHalf);
      EXPECT_TRUE(
          codes.codes.eq(nearest).logical_or(after.isinf().logical_not()).all().item<bool>());
      first = false;
    }
    linear.Step(at::randn({64, 128}), {0.05, 0.05, 1e-4, 0, true});
    before = linear.logits();
    EXPECT_TRUE(before.eq(after).logical_or(soft).all().item<bool>());
  }
}

TEST(SoftRoundingTest, T10_T11_MovesAreBounded) {
  const at::Tensor weight = RandomWeight(16, 64);
  SoftRounding linear = Make(weight);
  const at::Tensor start = linear.logits();
  const double rate = 0.01;
  for (int step = 1; step <= 30; ++step) {
    linear.Step(at::randn({16, 64}), {rate, rate, 0, 0, true});
    const double moved = (linear.logits() - start).abs().max().item<double>();
    if (step == 1) {
      EXPECT_LE(moved, rate * 1.001);
    }
    EXPECT_LE(moved, 3.2 * rate * step);
  }
  linear.Harden(0.5);  // a fresh optimizer
  const at::Tensor hardened = linear.logits();
  linear.Step(at::randn({16, 64}), {rate, rate, 0, 0, true});
  const at::Tensor moved = (linear.logits() - hardened).nan_to_num(0, 0, 0).abs();
  EXPECT_LE(moved.max().item<double>(), rate * 1.001);
}

// The whole schedule, pushed one way at every step: what is never hardened
// moves a rate a step, and stays below the bound of Adam's worst case.
TEST(SoftRoundingTest, T11_MovesOverAllStagesAreBounded) {
  constexpr double kRate = 1e-3;
  constexpr int kSteps = 20;
  SoftRounding linear = Make(RandomWeight(64, 128));
  const at::Tensor start = linear.logits();
  double steps = 0;
  double moved = 0;
  for (const double soft : ScheduleOf(20)) {
    linear.Harden(soft);
    for (int step = 0; step < kSteps; ++step, ++steps) {
      linear.Step(at::ones({64, 128}), {kRate, kRate, 1e-4, 0, true});
    }
    const at::Tensor live = at::isfinite(linear.logits());
    ASSERT_GT(live.sum().item<int64_t>(), 0);
    moved = (linear.logits() - start).masked_select(live).abs().max().item<double>();
    EXPECT_LE(moved, 3.2 * kRate * steps);
  }
  EXPECT_EQ(steps, 400);
  EXPECT_GT(moved, 0.5 * kRate * steps);
}

TEST(SoftRoundingTest, T15_T16_T17_IntegersComeFromTheDecisions) {
  const at::Tensor weight = RandomWeight(32, 64);
  SoftRounding linear = Make(weight);
  for (int step = 0; step < 40; ++step) {
    linear.Step(at::randn({32, 64}), {0.1, 0.02, 1e-4, 0, true});
  }
  const at::Tensor hard = linear.HardWeight();
  linear.HardenAll();
  EXPECT_TRUE(hard.equal(linear.weight()));
  const QuantizedLinear done = linear.Finish("x", {}, at::kHalf);
  const GroupGrid grid = MinMaxGrid(weight, kGrid, at::kHalf);
  const at::Tensor s = grid.scales.repeat_interleave(16, 1);
  const at::Tensor base = (weight / s).floor() + grid.zeros.repeat_interleave(16, 1);
  const at::Tensor up = done.codes.to(at::kFloat) - base;
  const at::Tensor inside = (base >= 0).logical_and(base < 3);
  EXPECT_TRUE(up.eq(0).logical_or(up.eq(1)).logical_or(inside.logical_not()).all().item<bool>());
  EXPECT_LE(done.codes.max().item<int>(), 3);
  const at::Tensor nearest = RoundToGrid(weight, kGrid, grid);
  EXPECT_LE((done.codes.to(at::kInt) - nearest.to(at::kInt)).abs().max().item<int>(), 1);
  EXPECT_GT(linear.flip_ratio(), 0.01);
  const double flips = done.codes.ne(nearest).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(linear.flip_ratio(), flips, 1e-9);
  // On-grid values round to the same integers on the frozen grid, but not on a
  // grid derived again from them (T18).
  const at::Tensor merged = (done.codes.to(at::kFloat) - grid.zeros.repeat_interleave(16, 1)) * s;
  EXPECT_TRUE(RoundToGrid(merged, kGrid, grid).equal(done.codes));
  // What training saw is what the integers give, to the bit; so is what is
  // packed with the scales rounded to 16 bits, and nothing else is rounded.
  const at::Tensor trained_scales = grid.scales * linear.factors();
  const auto dequantized = [&](const at::Tensor& scales) {
    const at::Tensor codes = UnpackRows(PackRows(done.codes, kGrid.bits), 64, kGrid.bits);
    const at::Tensor zeros = UnpackRows(PackRows(done.zeros, kGrid.bits), 4, kGrid.bits);
    return (codes.to(at::kFloat) - zeros.to(at::kFloat).repeat_interleave(16, 1)) *
           scales.repeat_interleave(16, 1);
  };
  EXPECT_TRUE(dequantized(trained_scales).equal(linear.weight()));
  EXPECT_TRUE(done.scales.equal(trained_scales.to(at::kHalf).to(at::kFloat)));
  EXPECT_FALSE(done.scales.equal(trained_scales));
  EXPECT_TRUE(dequantized(done.scales).equal(done.Dequantize()));
}

// T2 and T15 for every number of bits: codes of all of the range.
TEST(SoftRoundingTest, EveryWidthKeepsItsCodes) {
  const at::Tensor weight = RandomWeight(32, 64);
  for (const int bits : {2, 3, 4, 6, 8}) {
    const GridSpec spec = {bits, 16, false};
    const GroupGrid grid = MinMaxGrid(weight, spec, at::kHalf);
    SoftRounding linear = Make(weight, spec);
    const at::Tensor s = grid.scales.repeat_interleave(16, 1);
    // Half a step, and what rounding the scale to 16 bits adds at the far end.
    const double most = 0.501 + spec.qmax() / 2048.0;
    EXPECT_LE(((linear.weight() - weight).abs() / s).max().item<double>(), most) << bits;
    linear.HardenAll();
    const at::Tensor codes = linear.Finish("x", {}, at::kHalf).codes;
    const at::Tensor nearest = RoundToGrid(weight, spec, grid);
    EXPECT_GT(codes.eq(nearest).to(at::kDouble).mean().item<double>(), 0.999) << bits;
    EXPECT_GT(codes.max().item<int>(), spec.qmax() - 2) << bits;
    EXPECT_EQ(linear.flip_ratio(), codes.ne(nearest).to(at::kDouble).mean().item<double>()) << bits;
  }
}

// A weight, roundings trained on it, and what the published code stores of
// them: the weight moved by half a step wherever rounding to nearest would
// decide otherwise (spec: tesseraq.md 5.1).
struct Merged {
  explicit Merged(int64_t size) : weight(RandomWeight(size, size)) {
    SoftRounding linear = Make(weight);
    at::manual_seed(5);
    const at::Tensor along = at::randn({size, size});
    for (int step = 0; step < 60; ++step) linear.Step(along, {0.1, 0, 0, 0, false});
    done = linear.Finish("x", {}, at::kHalf);
    flips = linear.flip_ratio();
    grid = MinMaxGrid(weight, kGrid, at::kHalf);
    const at::Tensor s = grid.scales.repeat_interleave(16, 1);
    const at::Tensor position = weight / s;
    const at::Tensor nearest = (position - position.floor()) > 0.5;
    const at::Tensor up = linear.logits() > 0;
    merged = weight + (up.to(at::kFloat) - nearest.to(at::kFloat)) * 0.5 * s;
  }

  double Changed(const GroupGrid& other) const {
    return RoundToGrid(merged, kGrid, other).ne(done.codes).to(at::kDouble).mean().item<double>();
  }

  at::Tensor weight, merged;
  GroupGrid grid;
  QuantizedLinear done;
  double flips = 0;
};

TEST(SoftRoundingTest, T16_HalfAStepMergesToTheSameIntegers) {
  const Merged merged(1024);
  EXPECT_GT(merged.flips, 0.05);
  EXPECT_LE(merged.Changed(merged.grid), 1e-5);
}

TEST(SoftRoundingTest, T18_AGridFromMergedWeightsIsAnother) {
  const Merged merged(128);
  const GroupGrid again = MinMaxGrid(merged.merged, kGrid, at::kHalf);
  EXPECT_GE(merged.Changed(again), 0.1);
}

TEST(SoftRoundingTest, ALogitOfZeroGoesDown) {
  const at::Tensor weight = RandomWeight(8, 32);
  const at::Tensor zero = at::zeros_like(weight);
  const GroupGrid grid = MinMaxGrid(weight, kGrid, at::kHalf);
  const at::Tensor floors =
      (weight / grid.scales.repeat_interleave(16, 1)).floor() + grid.zeros.repeat_interleave(16, 1);
  const at::Tensor wanted = floors.clamp(0, 3).to(at::kByte);
  SoftRounding linear = Make(weight);
  linear.Restore(zero, at::zeros({8, 2}));
  EXPECT_TRUE(linear.Finish("x", {}, at::kHalf).codes.equal(wanted));
  const at::Tensor down = linear.HardWeight();
  linear.Harden(0.5);  // all score 0, the threshold: none is decided
  EXPECT_EQ(linear.hard_fraction(), 0);
  linear.HardenAll();
  EXPECT_TRUE(linear.Finish("x", {}, at::kHalf).codes.equal(wanted));
  EXPECT_TRUE(linear.weight().equal(down));
}

TEST(SoftRoundingTest, T23_DegenerateGroupsStayFinite) {
  at::Tensor weight = at::zeros({4, 16});
  weight[1].fill_(0.3);                    // constant
  weight[2] = at::linspace(0.1, 0.4, 16);  // one-signed
  weight[3] = at::linspace(-0.4, -0.1, 16);
  SoftRounding linear = Make(weight);
  for (const double tau : TenStageSchedule()) {
    linear.Harden(tau);
    linear.Step(at::randn({4, 16}), {});
  }
  linear.HardenAll();
  const QuantizedLinear done = linear.Finish("x", {}, at::kHalf);
  EXPECT_TRUE(at::isfinite(done.Dequantize()).all().item<bool>());
  EXPECT_TRUE((done.scales > 0).all().item<bool>());
}

// Places are kept in 32 bits; the weight here takes no memory.
TEST(SoftRoundingTest, RefusesMoreWeightsThanItCanCount) {
  const at::Tensor weight = at::zeros({1, 1}).expand({int64_t{1} << 16, int64_t{1} << 15});
  try {
    SoftRounding(weight, GroupGrid(), kGrid, ScaleCurve::kRectifiedSigmoid);
    ADD_FAILURE() << "it was taken";
  } catch (const EngineError& error) {
    EXPECT_EQ(error.reason, "UNSUPPORTED_ARCHITECTURE") << error.what();
  }
}

TEST(SoftRoundingTest, StateRestoresExactly) {
  const at::Tensor weight = RandomWeight(8, 64);
  SoftRounding one = Make(weight);
  one.Harden(0.7);
  for (int i = 0; i < 5; ++i) one.Step(at::randn({8, 64}), {0.02, 0.02, 1e-4, 0, true});
  SoftRounding two = Make(weight);
  two.Restore(one.logits(), one.scale_logits());
  EXPECT_TRUE(two.weight().equal(one.weight()));
  for (SoftRounding* linear : {&one, &two}) {
    at::manual_seed(1);
    linear->Harden(0.4);
    for (int i = 0; i < 5; ++i) linear->Step(at::randn({8, 64}), {0.02, 0.02, 1e-4, 0, true});
  }
  EXPECT_TRUE(two.weight().equal(one.weight()));
  EXPECT_TRUE(two.logits().equal(one.logits()));
}

TEST(OrderStatisticTest, MatchesAtQuantileAndCountsTheHardOnes) {
  at::manual_seed(2);
  const at::Tensor all = at::rand({1001}) * 0.5;
  for (const double fraction : {0.0, 0.1, 0.333, 0.8, 1.0}) {
    std::vector<float> values(all.data_ptr<float>(), all.data_ptr<float>() + 1001);
    EXPECT_NEAR(InterpolatedQuantile(values, 1001, 0.5F, fraction),
                at::quantile(all, fraction).item<float>(), 1e-6);
  }
  const at::Tensor padded = at::cat({all, at::full({999}, 0.5)});
  for (const double fraction : {0.2, 0.4999, 0.501, 0.9}) {
    std::vector<float> values(all.data_ptr<float>(), all.data_ptr<float>() + 1001);
    EXPECT_NEAR(InterpolatedQuantile(values, 2000, 0.5F, fraction),
                at::quantile(padded, fraction).item<float>(), 1e-6);
  }
}

// at::quantile refuses more than 2^24 values; a 7B model's layers have more.
TEST(OrderStatisticTest, TakesMoreThanAQuantileDoes) {
  constexpr int64_t kCount = (int64_t{1} << 24) + 9;
  std::vector<float> values(kCount, 0.0F);
  for (int i = 0; i < 5; ++i) values[kCount / 5 * i + 3] = 0.1F * static_cast<float>(i + 1);
  const auto at = [&](int64_t rank) {
    return InterpolatedQuantile(values, kCount, 0.5F,
                                static_cast<double>(rank) / static_cast<double>(kCount - 1));
  };
  EXPECT_NEAR(at(kCount - 1), 0.5, 1e-6);
  EXPECT_NEAR(at(kCount - 3), 0.3, 1e-6);
  EXPECT_NEAR(at(kCount - 6), 0.0, 1e-6);
}

TEST(ScheduleTest, ListsAndInterpolation) {
  // Soft shares of the paper's two schedules.
  EXPECT_EQ(ScheduleOf(20),
            (std::vector<double>{0.80, 0.65, 0.50, 0.43, 0.38, 0.34, 0.30, 0.27, 0.24, 0.21,
                                 0.18, 0.15, 0.12, 0.10, 0.08, 0.06, 0.04, 0.02, 0.01, 0.005}));
  EXPECT_EQ(ScheduleOf(10),
            (std::vector<double>{0.75, 0.50, 0.375, 0.25, 0.125, 0.09, 0.06, 0.04, 0.02, 0.005}));
  for (const int stages : {1, 3, 7, 15, 40}) {
    const std::vector<double> schedule = ScheduleOf(stages);
    ASSERT_EQ(schedule.size(), static_cast<size_t>(stages));
    EXPECT_NEAR(schedule.back(), 0.005, 1e-9);
    EXPECT_NO_THROW(CheckSchedule(schedule));
  }
  for (const std::vector<double>& bad :
       {std::vector<double>{0.5, 0.5}, {0.4, 0.6}, {1.0}, {0.0}, {0.5, -0.1}}) {
    EXPECT_ANY_THROW(CheckSchedule(bad));
  }
}

}  // namespace
}  // namespace quantry::engine
