#include "worker/engine/methods/gptq/gptq.h"

#include <gtest/gtest.h>

#include <string>

#include "worker/engine/methods/awq/inputs.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/gptq/hessian.h"
#include "worker/engine/methods/rtn/rtn.h"
#include "worker/engine/methods/testing/setting.h"
#include "worker/engine/quant/grid_search.h"
#include "worker/engine/testing/matrix.h"
#include "worker/engine/testing/threads.h"

namespace quantry::engine {
namespace {

using test::CountingSink;
using test::Matrix;
using test::RelativeError;
using test::Setting;

// spec/baselines.md 1.5.
const at::Tensor kInputs =
    Matrix({1, 1, -1, 0, 2, 0, -1, 2, 0, 0, 2, 1, 1, 2, -1, 2, 1, 1, 1, 1}, 5);
const at::Tensor kWeight = Matrix({0.5, -0.3, 0.8, 0.1, -0.6, 0.4, 0.2, -0.9}, 2);

at::Tensor GoldenHessian() { return at::mm(kInputs.t(), kInputs) * 2; }

// fp32 scales: the golden example does not round them.
GridFit ExactFit(const GridSpec& spec) {
  return [spec](const at::Tensor& weight) { return MinMaxGrid(weight, spec, at::kFloat); };
}

at::Tensor Values(const RoundedColumns& rounded, const GridSpec& spec) {
  QuantizedLinear linear;
  linear.grid = spec;
  linear.codes = rounded.codes;
  linear.scales = rounded.grid.scales;
  linear.zeros = rounded.grid.zeros;
  return linear.Dequantize();
}

double OutputError(const at::Tensor& values) {
  return at::mm(values - kWeight, kInputs.t()).square().sum().item<double>();
}

TEST(GptqGolden, InverseFactor) {
  const at::Tensor want = Matrix({0.568613, -0.015852, 0.161317, -0.371096, 0, 0.38847, 0.073224,
                                  -0.185475, 0, 0, 0.25034, 0.024842, 0, 0, 0, 0.222745},
                                 4);
  const InverseFactor factor = FactorInverse(GoldenHessian(), 0.01);
  EXPECT_EQ(factor.damping, 0.01);
  EXPECT_TRUE(at::allclose(factor.upper, want, 1e-4, 2e-6)) << factor.upper;
}

struct GoldenCase {
  const char* name;
  ColumnOptions options;
  int64_t group;
  std::vector<float> values;  // codes per row (group -1), or dequantized weights
  double loss;                // 0 = not given
  double output_error;
};

class GptqGoldenTest : public ::testing::TestWithParam<GoldenCase> {};

TEST_P(GptqGoldenTest, CodesAndErrors) {
  const GoldenCase& golden = GetParam();
  const GridSpec spec = {2, golden.group, false};
  const RoundedColumns rounded =
      RoundColumns(kWeight, GoldenHessian(), spec, ExactFit(spec), golden.options);
  const at::Tensor values = Values(rounded, spec);
  const at::Tensor got = golden.group < 0 ? rounded.codes.to(at::kFloat) : values;
  EXPECT_TRUE(at::allclose(got, Matrix(golden.values, 2), 1e-5, 2e-6)) << got;
  EXPECT_NEAR(OutputError(values), golden.output_error, 2e-6);
  if (golden.loss > 0) {
    EXPECT_NEAR(rounded.loss, golden.loss, 2e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Golden, GptqGoldenTest,
    ::testing::Values(
        GoldenCase{"plain", {}, -1, {2, 0, 3, 2, 1, 3, 3, 0}, 0.773011, 0.758889},
        GoldenCase{"block_of_one", {0.01, 1}, -1, {2, 0, 3, 2, 1, 3, 3, 0}, 0.773011, 0.758889},
        GoldenCase{"block_of_three", {0.01, 3}, -1, {2, 0, 3, 2, 1, 3, 3, 0}, 0.773011, 0.758889},
        GoldenCase{
            "act_order", {0.01, 128, true}, -1, {3, 0, 3, 1, 0, 3, 2, 0}, 0.606689, 0.592222},
        GoldenCase{"stale_groups",
                   {},
                   2,
                   {.533333, -.266667, .8, 0, -.666667, .333333, 0, -.733333},
                   0,
                   0.401111},
        GoldenCase{"fresh_groups",
                   {0.01, 128, false, false, true},
                   2,
                   {.533333, -.266667, .815915, 0, -.666667, .333333, .330648, -.661296},
                   0,
                   0.485719}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(GptqGolden, RoundToNearestIsWorse) {
  EXPECT_NEAR(OutputError(FakeQuantize(kWeight, {2, -1, false}, at::kFloat)), 1.432222, 2e-6);
}

// A weight and correlated inputs.
struct Sample {
  at::Tensor weight, hessian, inputs;
};

Sample Correlated(int64_t out, int64_t in, uint64_t seed) {
  at::manual_seed(seed);
  const at::Tensor x =
      at::mm(at::randn({200, in / 2}), at::randn({in / 2, in})) + at::randn({200, in}) * 0.3;
  return {at::randn({out, in}), at::mm(x.t(), x) / 100, x};
}

// Blocks of one column leave no compensation for later: what fresh groups are
// fitted to, however blocks and groups lie.
TEST(Gptq, FreshGroupsSeeAllCompensationAcrossBlocks) {
  const GridSpec spec = {3, 16, false};
  const Sample s = Correlated(24, 96, 6);
  const at::Tensor wanted =
      RoundColumns(s.weight, s.hessian, spec, ExactFit(spec), {.block_size = 1}).grid.scales;
  for (const int64_t block : {40, 24, 7}) {
    const at::Tensor scales = RoundColumns(s.weight, s.hessian, spec, ExactFit(spec),
                                           {.block_size = block, .fresh_groups = true})
                                  .grid.scales;
    const at::Tensor same = (scales - wanted).abs() < wanted * 1e-4;
    EXPECT_GE(same.to(at::kFloat).mean().item<double>(), 0.98) << block;  // a code may flip
  }
}

struct GridCase {
  const char* name;
  GridSpec grid;
  ColumnOptions options;
};

class GptqTest : public ::testing::TestWithParam<GridCase> {
 protected:
  RoundedColumns Round(const at::Tensor& weight, const at::Tensor& hessian) const {
    const GridSpec spec = GetParam().grid;
    const GridFit fit = [spec](const at::Tensor& w) { return MinMaxGrid(w, spec, at::kHalf); };
    return RoundColumns(weight, hessian, spec, fit, GetParam().options);
  }
  at::Tensor ValuesOf(const RoundedColumns& rounded) const {
    return Values(rounded, GetParam().grid);
  }
};

// G1: the loss counted on the way is the quadratic form of the error.
TEST_P(GptqTest, G1LossIsTheQuadraticFormOfTheError) {
  const Sample s = Correlated(24, 96, 1);
  const RoundedColumns rounded = Round(s.weight, s.hessian);
  at::Tensor damped = s.hessian.to(at::kDouble);
  damped.diagonal().add_(rounded.damping * s.hessian.diagonal().mean().item<double>());
  const at::Tensor error = (ValuesOf(rounded) - s.weight).to(at::kDouble);
  const double form = (at::mm(error, damped) * error).sum().item<double>();
  EXPECT_NEAR(2 * rounded.loss / form, 1.0, 2e-4);
}

// G5.
TEST_P(GptqTest, G5CodesStayOnTheGrid) {
  const Sample s = Correlated(24, 96, 2);
  const RoundedColumns rounded = Round(s.weight, s.hessian);
  EXPECT_LE(rounded.codes.max().item<int>(), GetParam().grid.qmax());
  EXPECT_TRUE(at::equal(rounded.grid.scales, rounded.grid.scales.to(at::kHalf).to(at::kFloat)));
}

// G6: the size of the inputs does not matter; powers of two are exact.
TEST_P(GptqTest, G6ScalingInputsChangesNothing) {
  const Sample s = Correlated(16, 96, 3);
  EXPECT_TRUE(at::equal(Round(s.weight, s.hessian).codes, Round(s.weight, s.hessian * 16).codes));
}

// G7.
TEST_P(GptqTest, G7DeadColumnsBecomeZero) {
  Sample s = Correlated(16, 96, 4);
  for (const int64_t dead : {0, 41, 95}) {
    s.hessian.select(0, dead).zero_();
    s.hessian.select(1, dead).zero_();
  }
  const at::Tensor values = ValuesOf(Round(s.weight, s.hessian));
  for (const int64_t dead : {0, 41, 95}) {
    EXPECT_EQ(values.select(1, dead).abs().max().item<double>(), 0.0) << dead;
  }
}

// G9.
TEST_P(GptqTest, G9BeatsRoundingOnCorrelatedInputs) {
  const Sample s = Correlated(32, 96, 5);
  const at::Tensor wanted = at::mm(s.inputs, s.weight.t());
  const at::Tensor nearest = FakeQuantize(s.weight, GetParam().grid, at::kHalf);
  const at::Tensor values = ValuesOf(Round(s.weight, s.hessian));
  EXPECT_LT(RelativeError(at::mm(s.inputs, values.t()), wanted),
            0.9 * RelativeError(at::mm(s.inputs, nearest.t()), wanted));
}

// G3: equal, uncorrelated inputs leave nothing to compensate.
TEST_P(GptqTest, G3WhiteInputsMeanRounding) {
  const Sample s = Correlated(16, 96, 6);
  const at::Tensor values = ValuesOf(Round(s.weight, at::eye(96) * 3));
  EXPECT_TRUE(at::equal(values, FakeQuantize(s.weight, GetParam().grid, at::kHalf)));
}

INSTANTIATE_TEST_SUITE_P(
    Grids, GptqTest,
    ::testing::Values(GridCase{"channel2", {2, -1, false}, {}},
                      GridCase{"channel3_act_order", {3, -1, false}, {0.01, 128, true}},
                      GridCase{"symmetric4_small_block", {4, -1, true}, {0.01, 20}},
                      GridCase{"g32", {3, 32, false}, {}},
                      GridCase{"g48_narrow_block", {2, 48, false}, {0.01, 32}},
                      GridCase{"g32_static", {3, 32, false}, {0.05, 128, false, true}},
                      GridCase{"g32_act_order", {2, 32, false}, {0.01, 64, true}},
                      GridCase{"g16_fresh", {3, 16, true}, {0.01, 24, false, false, true}}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

// G2.
TEST(Gptq, G2BlockSizeDoesNotMatterPerChannel) {
  const Sample s = Correlated(20, 90, 7);
  const GridSpec spec = {3, -1, false};
  const at::Tensor codes = RoundColumns(s.weight, s.hessian, spec, ExactFit(spec), {}).codes;
  for (const int64_t size : {1, 7, 32, 90}) {
    const at::Tensor other =
        RoundColumns(s.weight, s.hessian, spec, ExactFit(spec), {0.01, size}).codes;
    // fp32 sums in another order may tip a tie.
    EXPECT_LT(codes.ne(other).sum().item<int64_t>(), 3) << size;
  }
}

// G4: stable order.
TEST(Gptq, G4ActOrderWithEqualDiagonalIsTheSame) {
  Sample s = Correlated(16, 64, 8);
  const at::Tensor d = s.hessian.diagonal().rsqrt();
  at::Tensor h = s.hessian * d.unsqueeze(0) * d.unsqueeze(1);
  h.diagonal().fill_(1.0);
  const GridSpec spec = {3, -1, false};
  EXPECT_TRUE(at::equal(RoundColumns(s.weight, h, spec, ExactFit(spec), {}).codes,
                        RoundColumns(s.weight, h, spec, ExactFit(spec), {0.01, 128, true}).codes));
}

// G8.
TEST(Gptq, G8ActOrderFollowsAPermutation) {
  const Sample s = Correlated(16, 64, 9);
  const at::Tensor order = at::randperm(64);
  const GridSpec spec = {3, -1, false};
  const ColumnOptions act_order = {0.01, 128, true};
  const at::Tensor codes = RoundColumns(s.weight, s.hessian, spec, ExactFit(spec), act_order).codes;
  const at::Tensor permuted = RoundColumns(s.weight.index_select(1, order),
                                           s.hessian.index_select(0, order).index_select(1, order),
                                           spec, ExactFit(spec), act_order)
                                  .codes;
  EXPECT_LT(codes.index_select(1, order).ne(permuted).sum().item<int64_t>(), 3);
}

TEST(Gptq, DampingGrowsUntilTheFactorExists) {
  at::Tensor h = at::ones({8, 8});
  h.diagonal().fill_(0.8);  // an eigenvalue of -0.2
  const InverseFactor factor = FactorInverse(h, 0.01);
  ASSERT_TRUE(factor.upper.defined());
  EXPECT_EQ(factor.damping, 1.0);
  EXPECT_FALSE(FactorInverse(h - at::eye(8), 0.01).upper.defined());
  const GridSpec spec = {3, -1, false};
  const at::Tensor weight = at::randn({4, 8});
  at::Tensor broken = h - at::eye(8) * 2;
  const RoundedColumns rounded = RoundColumns(weight, broken, spec, ExactFit(spec), {});
  EXPECT_TRUE(rounded.rounded_to_nearest);
  EXPECT_TRUE(at::equal(Values(rounded, spec), FakeQuantize(weight, spec, at::kFloat)));
}

// Rows with a bell's tails: at 2 bits a smaller range always pays.
TEST(SearchGrid, ShrinksTheRangeWhereThatLowersTheError) {
  at::manual_seed(8);
  const GridSpec spec = {2, -1, false};
  const at::Tensor rows = at::randn({4, 256});
  const GroupGrid grid = SearchGrid(rows, spec, at::kFloat);
  const GroupGrid plain = MinMaxGrid(rows, spec, at::kFloat);
  EXPECT_TRUE((grid.scales < plain.scales).all().item<bool>());
  const auto error = [&](const GroupGrid& g) {
    const at::Tensor codes = RoundToGrid(rows, spec, g).to(at::kFloat);
    return ((codes - g.zeros) * g.scales - rows).abs().pow(2.4).sum(-1);
  };
  EXPECT_TRUE((error(grid) < error(plain)).all().item<bool>());
}

class GptqMethodTest : public ::testing::TestWithParam<const char*> {};

TEST_P(GptqMethodTest, BeatsRoundingAndReportsItsSteps) {
  const Setting setting(GetParam());
  const BlockTask task = setting.Task({3, -1, false});
  const at::Tensor wanted = setting.block.Forward(setting.x, setting.rope);
  CountingSink unused;
  const auto loss = [&](const Method& method) {
    const Block block = Rebuild(setting.block, method.Quantize(task, unused).block);
    return RelativeError(block.Forward(setting.x, setting.rope), wanted);
  };
  for (const bool sequential : {false, true}) {
    GptqOptions options;
    options.true_sequential = sequential;
    options.columns.act_order = true;
    const Gptq gptq(options);
    CountingSink counter;
    const MethodResult first = gptq.Quantize(task, counter);
    EXPECT_EQ(counter.steps(), gptq.Steps(setting.checkpoint->architecture(),
                                          setting.checkpoint->config(), setting.stream()));
    EXPECT_LT(loss(gptq), loss(Rtn()));
    const MethodResult second = gptq.Quantize(task, counter);
    for (size_t i = 0; i < first.block.linears.size(); ++i) {
      EXPECT_TRUE(at::equal(first.block.linears[i].codes, second.block.linears[i].codes));
    }
    EXPECT_EQ(first.metrics, second.metrics);
  }
}

// G10: linears with one input share H, and it is that of their own input.
TEST_P(GptqMethodTest, G10SharedSecondMomentsAreTheInputsOwn) {
  const Setting setting(GetParam());
  const BlockTask task = setting.Task({3, -1, false});
  CountingSink counter;
  std::set<int> sources;
  for (size_t i = 0; i < setting.block.linears.size(); ++i) {
    sources.insert(InputSource(*setting.block.architecture, static_cast<int>(i)));
  }
  const auto hessians = CollectHessians(task, setting.block, sources, counter);
  setting.block.Forward(setting.x, setting.rope, [&](int i, const at::Tensor& x) {
    const at::Tensor rows = x.reshape({-1, x.size(-1)});
    const at::Tensor own = at::mm(rows.t(), rows) * (2.0 / 40);
    EXPECT_LT(RelativeError(hessians.at(InputSource(*setting.block.architecture, i)), own), 1e-5);
    return setting.block.Apply(i, x);
  });
}

// Four batches of windows have four workers at most, each with a sum of its own.
TEST_P(GptqMethodTest, CountsASumAWorker) {
  const Setting setting(GetParam());
  const auto bytes = [&](int count) {
    const test::Threads threads(count);
    return Gptq(GptqOptions())
        .WorkingBytes(setting.checkpoint->architecture(), setting.checkpoint->config(), {256, 16},
                      at::kCPU);
  };
  const auto moments = [&](int workers, int kept) {
    return MomentBytes(setting.checkpoint->architecture(), setting.checkpoint->config(), workers,
                       kept);
  };
  const int64_t sums = moments(1, 2) - moments(1, 1);
  EXPECT_GT(sums, 0);
  EXPECT_EQ(bytes(1), moments(1, 1));
  EXPECT_EQ(bytes(3) - bytes(1), 2 * sums);
  EXPECT_EQ(bytes(8) - bytes(1), 3 * sums);
  EXPECT_EQ(moments(4, 2), moments(4, 1)) << "the workers' are gone by then";
}

INSTANTIATE_TEST_SUITE_P(Architectures, GptqMethodTest,
                         ::testing::Values("llama", "qwen2", "qwen3", "opt"),
                         [](const auto& param_info) { return std::string(param_info.param); });

}  // namespace
}  // namespace quantry::engine
