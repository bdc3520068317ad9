#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "worker/engine/methods/training/block_loss.h"
#include "worker/engine/methods/training/trainable_quantize.h"
#include "worker/engine/reconstruct/adam.h"

namespace quantry::engine {
namespace {

at::Tensor Row(std::vector<float> values) { return at::tensor(values).view({1, -1}); }

// w = (-1, -0.2, 0.1, 0.7) with clipping logits (u, l), 2 bits, asymmetric
// (spec: baselines.md 2.6).
struct Golden {
  explicit Golden(double u, double l)
      : upper(at::full({1, 1}, u).requires_grad_(true)),
        lower(at::full({1, 1}, l).requires_grad_(true)) {
    const GridSpec spec = {2, -1, false};
    const GroupRange range = RangeOfGroups(weight, spec);
    grid =
        TrainableGrid({range.lo * lower.sigmoid(), range.hi * upper.sigmoid()}, spec, at::kFloat);
    values = TrainableQuantize(weight, grid.scales, grid.zeros, {}, spec.qmax());
  }
  at::Tensor weight = Row({-1.0F, -0.2F, 0.1F, 0.7F});
  at::Tensor upper, lower;
  GroupGrid grid;
  at::Tensor values;
};

TEST(OmniquantGolden, Values) {
  const at::AutoGradMode grad(true);
  const Golden close(4, 4);
  EXPECT_NEAR(close.grid.scales.item<double>(), 0.556474, 1e-6);
  EXPECT_EQ(close.grid.zeros.item<double>(), 2);
  EXPECT_TRUE(at::allclose(close.values, Row({-1.112949F, 0, 0, 0.556474F}), 1e-5, 1e-6));
  const Golden tight(0.5, 1.0);
  EXPECT_NEAR(tight.grid.scales.item<double>(), 0.388927, 1e-6);
  EXPECT_TRUE(at::allclose(tight.values, Row({-0.777853F, -0.388927F, 0, 0.388927F}), 1e-5, 1e-6));
}

// O2.
TEST(OmniquantGolden, O2Gradients) {
  const at::AutoGradMode grad(true);
  struct Case {
    double u, l, by_scale, by_upper, by_lower;
  };
  for (const Case& c : {Case{0.5, 1.0, 0.257118, 0.0140989, 0.0168508},
                        Case{4, 4, -1.054947, -0.00434775, -0.00621107}}) {
    const Golden golden(c.u, c.l);
    const at::Tensor sum = (golden.values * Row({1, 2, 3, 4})).sum();
    const auto by = torch::autograd::grad({sum}, {golden.grid.scales, golden.upper, golden.lower});
    EXPECT_NEAR(by[0].item<double>(), c.by_scale, 1e-5);
    EXPECT_NEAR(by[1].item<double>(), c.by_upper, 1e-6);
    EXPECT_NEAR(by[2].item<double>(), c.by_lower, 1e-6);
  }
}

// O1: a range kept whole is the min/max grid, to the bit.
TEST(TrainableGrid, O1WholeRangeIsMinMax) {
  at::manual_seed(1);
  const at::Tensor weight = at::randn({6, 48});
  for (const GridSpec& spec :
       {GridSpec{2, 16, false}, GridSpec{3, -1, false}, GridSpec{4, 24, true}}) {
    for (const auto dtype : {at::kHalf, at::kBFloat16}) {
      const GroupGrid grid = TrainableGrid(RangeOfGroups(weight, spec), spec, dtype);
      const GroupGrid plain = MinMaxGrid(weight, spec, dtype);
      EXPECT_TRUE(at::equal(grid.scales, plain.scales));
      EXPECT_TRUE(at::equal(grid.zeros, plain.zeros));
      EXPECT_TRUE(at::equal(TrainableQuantize(weight, grid.scales, grid.zeros, {}, spec.qmax()),
                            FakeQuantize(weight, spec, dtype)));
    }
  }
}

// A zero point raised to 1 has a scale that only the upper end sets.
TEST(TrainableGrid, GradientsOfARaisedZeroPoint) {
  const at::AutoGradMode grad(true);
  const GridSpec spec = {2, -1, false, true};
  const at::Tensor lo = at::tensor({-0.1F, -1.0F}).view({2, 1}).requires_grad_(true);
  const at::Tensor hi = at::tensor({1.0F, 1.0F}).view({2, 1}).requires_grad_(true);
  const GroupGrid grid = TrainableGrid({lo, hi}, spec, at::kFloat);
  EXPECT_TRUE(at::equal(grid.zeros, at::tensor({1.0F, 2.0F}).view({2, 1}))) << grid.zeros;
  EXPECT_TRUE(at::allclose(grid.scales, at::tensor({1.0F / 2, 2.0F / 3}).view({2, 1})));
  const auto by = torch::autograd::grad({grid.scales.sum()}, {lo, hi});
  EXPECT_TRUE(at::allclose(by[0], at::tensor({0.0F, -1.0F / 3}).view({2, 1}))) << by[0];
  EXPECT_TRUE(at::allclose(by[1], at::tensor({1.0F / 2, 1.0F / 3}).view({2, 1}))) << by[1];
}

// Where no rounding changes, central differences see round(..) frozen.
TEST(TrainableQuantize, GradientsMatchFiniteDifferences) {
  const at::AutoGradMode grad(true);
  at::manual_seed(2);
  const at::Tensor weight = at::randn({3, 8});
  const at::Tensor scales = at::full({3, 2}, 0.3);
  const at::Tensor zeros = at::full({3, 2}, 3.0);
  const at::Tensor c = at::randn({3, 8});
  const at::Tensor v = at::rand({3, 8}) * 0.2;
  const at::Tensor ratio =
      (weight.view({3, 2, 4}) / scales.unsqueeze(-1) + v.view({3, 2, 4})).to(at::kDouble);
  const at::Tensor shift = ratio.round() - ratio;
  const at::Tensor codes = (ratio.round() + zeros.unsqueeze(-1));
  const at::Tensor inside = codes.ge(0).logical_and(codes.le(7));
  // In double, with round(x) - x and the clipped elements of the centre kept.
  const auto frozen = [&](const at::Tensor& w, const at::Tensor& s, const at::Tensor& offsets) {
    const at::Tensor moved =
        w.view({3, 2, 4}) / s.unsqueeze(-1) + offsets.view({3, 2, 4}) + shift + zeros.unsqueeze(-1);
    const at::Tensor kept = at::where(inside, moved, codes.clamp(0.0, 7.0));
    return (((kept - zeros.unsqueeze(-1)) * s.unsqueeze(-1)).view({3, 8}) * c)
        .sum(at::kDouble)
        .item<double>();
  };
  const std::vector<at::Tensor> inputs = {weight.clone().requires_grad_(true),
                                          scales.clone().requires_grad_(true),
                                          v.clone().requires_grad_(true)};
  const at::Tensor sum = (TrainableQuantize(inputs[0], inputs[1], zeros, inputs[2], 7) * c).sum();
  const auto analytic = torch::autograd::grad({sum}, inputs);
  constexpr double kStep = 1e-6;
  for (size_t which = 0; which < inputs.size(); ++which) {
    for (int64_t i = 0; i < inputs[which].numel(); ++i) {
      const auto at_offset = [&](double offset) {
        std::vector<at::Tensor> moved = {weight.to(at::kDouble), scales.to(at::kDouble),
                                         v.to(at::kDouble)};
        moved[which] = moved[which].clone();
        moved[which].view(-1)[i] += offset;
        return frozen(moved[0], moved[1], moved[2]);
      };
      const double numeric = (at_offset(kStep) - at_offset(-kStep)) / (2 * kStep);
      EXPECT_NEAR(analytic[which].view(-1)[i].item<double>(), numeric, 2e-3) << which << " " << i;
    }
  }
}

// O5: the first step moves every live parameter by the rate.
TEST(Adam, O5FirstStepIsTheRate) {
  Adam adam;
  const at::Tensor x = at::zeros({4});
  adam.Add(x, 0.01);
  adam.Step({at::tensor({3.0F, -1e-3F, 100.0F, 0.0F})});
  EXPECT_TRUE(at::allclose(x, at::tensor({-0.01F, 0.01F, -0.01F, 0.0F}), 1e-2, 1e-9)) << x;
  adam.Step({at::Tensor()});
  EXPECT_TRUE(at::allclose(x, at::tensor({-0.01F, 0.01F, -0.01F, 0.0F}), 1e-2, 1e-9));
}

// Against the formulas written out, over several steps.
TEST(Adam, FollowsItsFormula) {
  Adam adam;
  const at::Tensor x = at::full({1}, 2.0, at::kDouble);
  adam.Add(x, 0.1);
  double wanted = 2.0, m = 0, v = 0;
  for (int t = 1; t <= 5; ++t) {
    const double g = 2 * wanted;
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    adam.Step({x * 2});
    wanted -= 0.1 * (m / (1 - std::pow(0.9, t))) / (std::sqrt(v / (1 - std::pow(0.999, t))) + 1e-8);
    EXPECT_NEAR(x.item<double>(), wanted, 1e-9);
  }
}

}  // namespace
}  // namespace quantry::engine
