#include "worker/engine/methods/omniquant/omniquant.h"

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/omniquant/transform.h"
#include "worker/engine/methods/rtn/rtn.h"
#include "worker/engine/methods/testing/setting.h"
#include "worker/engine/methods/training/block_loss.h"
#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

using test::CountingSink;
using test::RelativeError;
using test::Setting;

const GridSpec kTwoBits = {2, -1, false};

OmniquantOptions Short() {
  OmniquantOptions options;
  options.epochs = 4;
  return options;
}

class OmniquantTest : public ::testing::TestWithParam<const char*> {
 protected:
  Setting setting_{GetParam(), nlohmann::json::object(), 8};

  EquivalentTransform Transform(bool tied, CountingSink& counter) const {
    const BlockTask task = setting_.Task(kTwoBits);
    BlockTargetOptions options;
    options.input_middle = true;
    const BlockTargets targets = MakeBlockTargets(task, options, counter);
    return {setting_.block, targets.input_max, 0.5, tied, targets.input_middle};
  }
};

// O3, O9: the transformation changes nothing in full precision, in training and
// baked, and leaves the down projection's inputs alone.
TEST_P(OmniquantTest, O3TransformPreservesTheFunction) {
  CountingSink counter;
  EquivalentTransform transform = Transform(/*tied=*/true, counter);
  at::manual_seed(5);
  for (at::Tensor parameter : transform.parameters()) {
    const at::NoGradGuard no_grad;
    parameter.mul_(at::rand_like(parameter).add_(0.5));
  }
  const at::NoGradGuard no_grad;
  const at::Tensor wanted = setting_.block.Forward(setting_.x, setting_.rope);
  const Block applied = transform.Apply(setting_.block);
  EXPECT_LT(RelativeError(applied.Forward(setting_.x, setting_.rope), wanted), 2e-5);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Block baked = transform.Bake(setting_.block, setting_.Task(kTwoBits, dtype).dense_dtypes);
    EXPECT_LT(RelativeError(baked.Forward(setting_.x, setting_.rope), wanted), 2e-5);
  }
  const int down = setting_.block.architecture->LinearIndex(LinearRole::kDown);
  EXPECT_TRUE(at::equal(applied.linears[down].weight, setting_.block.linears[down].weight));
  const int query = setting_.block.architecture->LinearIndex(LinearRole::kQuery);
  EXPECT_FALSE(at::equal(applied.linears[query].weight, setting_.block.linears[query].weight));
}

// baselines.md 2.2: shifts are for what has biases, here OPT, and only where they are asked for.
TEST_P(OmniquantTest, ShiftsWantBiasesOnBothSides) {
  CountingSink counter;
  const EquivalentTransform transform = Transform(true, counter);
  const EquivalentTransform plain(
      setting_.block, MakeBlockTargets(setting_.Task(kTwoBits), {}, counter).input_max, 0.5, true);
  const size_t shifts = std::string(GetParam()) == "opt" ? 3 : 0;
  EXPECT_EQ(transform.parameters().size(), plain.parameters().size() + shifts);
}

// O6, O8: training lowers the loss; without it the result is RTN on ranges kept
// to sigmoid(4).
TEST_P(OmniquantTest, O6TrainingLowersTheLoss) {
  for (const bool transform : {false, true}) {
    OmniquantOptions options = Short();
    options.learn_transform = transform;
    BlockTask task = setting_.Task(kTwoBits);
    task.activations.bits = transform ? 6 : 16;
    CountingSink counter;
    const OmniquantResult result = LearnClipping(task, options, counter);
    EXPECT_LT(result.last_loss, result.first_loss) << transform;
    EXPECT_EQ(counter.steps(), LearnClippingSteps(options, 2, setting_.stream()));
  }
}

// Some rate is too high for fp32, and a tenth or a hundredth of it is not.
TEST(OmniquantRetries, ALossThatIsNotFiniteStartsOverAtATenthOfTheRates) {
  const Setting setting("llama", nlohmann::json::object(), 8);
  BlockTask task = setting.Task(kTwoBits);
  OmniquantOptions options = Short();
  options.learn_transform = true;
  OmniquantResult result;
  for (double rate = 1e18; result.retries == 0 && rate < 1e36; rate *= 10) {
    options.transform_learning_rate = rate;
    CountingSink counter;
    result = LearnClipping(task, options, counter);
    EXPECT_EQ(counter.steps(), LearnClippingSteps(options, 2, setting.stream())) << rate;
  }
  EXPECT_GE(result.retries, 1);
  EXPECT_TRUE(std::isfinite(result.last_loss));
  task.x_q = at::full_like(task.x_q, NAN);
  CountingSink counter;
  const EngineError error = test::ErrorOf([&] { LearnClipping(task, options, counter); });
  EXPECT_EQ(error.reason, "NON_FINITE_LOSS");
  EXPECT_TRUE(test::Mentions(error, "block 0, learning to clip")) << error.what();
}

TEST_P(OmniquantTest, O8NoLearningIsClippedRounding) {
  OmniquantOptions options = Short();
  options.learn_transform = false;
  options.learning_rate = 0;
  CountingSink counter;
  const BlockTask task = setting_.Task(kTwoBits);
  const MethodResult result = Omniquant(options, 2).Quantize(task, counter);
  for (size_t i = 0; i < result.block.linears.size(); ++i) {
    const at::Tensor& weight = setting_.block.linears[i].weight;
    const at::Tensor keep = at::full({weight.size(0), 1}, 4.0).sigmoid();
    const GroupGrid grid = ClippedGrid(weight, {keep, keep}, kTwoBits, at::kHalf);
    EXPECT_TRUE(at::equal(result.block.linears[i].codes, RoundToGrid(weight, kTwoBits, grid)));
    EXPECT_TRUE(at::equal(result.block.linears[i].scales, grid.scales));
  }
}

TEST_P(OmniquantTest, BeatsRoundingAndRepeats) {
  const BlockTask task = setting_.Task(kTwoBits);
  const at::Tensor wanted = setting_.block.Forward(setting_.x, setting_.rope);
  CountingSink counter;
  OmniquantOptions options = Short();
  options.epochs = 20;
  const Omniquant method(options, 2);
  const auto error = [&](const QuantizedBlock& quantized) {
    const Block block = Rebuild(setting_.block, quantized);
    return RelativeError(block.Forward(setting_.x, setting_.rope), wanted);
  };
  const MethodResult first = method.Quantize(task, counter);
  EXPECT_EQ(counter.steps(), method.Steps(setting_.checkpoint->architecture(),
                                          setting_.checkpoint->config(), setting_.stream()));
  EXPECT_LT(error(first.block), error(Rtn().Quantize(task, counter).block));
  const MethodResult second = method.Quantize(task, counter);
  for (size_t i = 0; i < first.block.linears.size(); ++i) {
    EXPECT_TRUE(at::equal(first.block.linears[i].codes, second.block.linears[i].codes));
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, OmniquantTest,
                         ::testing::Values("llama", "qwen2", "qwen3", "opt"),
                         [](const auto& param_info) { return std::string(param_info.param); });

// spec/baselines.md 2.3: untied scales between query and key change the model
// where positions rotate channel pairs, tied ones do not.
TEST(EquivalentTransform, OnlyTiedScalesKeepRotaryAttention) {
  const Setting setting("llama", nlohmann::json::object(), 4);
  CountingSink counter;
  const BlockTargets targets = MakeBlockTargets(setting.Task(kTwoBits), {}, counter);
  const at::Tensor wanted = setting.block.Forward(setting.x, setting.rope);
  for (const bool tied : {true, false}) {
    const EquivalentTransform transform(setting.block, targets.input_max, 0.5, tied);
    const at::NoGradGuard no_grad;
    at::Tensor scale = transform.parameters().back();
    scale.copy_(at::linspace(0.5, 2.0, scale.numel()));
    const double error =
        RelativeError(transform.Apply(setting.block).Forward(setting.x, setting.rope), wanted);
    EXPECT_EQ(error < 1e-5, tied) << error;
  }
}

// A channel whose values lie far from 0 takes up a token's whole range, and shrinking it makes its
// weights large; shifted it takes nothing. baselines.md 2.2.
TEST(EquivalentTransform, ShiftsFreeQuantizedInputsFromWhatIsAlwaysThere) {
  Setting setting("opt", nlohmann::json::object(), 8);
  at::manual_seed(6);
  Block& block = setting.block;
  for (Norm& norm : block.norms) norm.bias = at::randn_like(norm.bias).mul_(20);
  BlockTargetOptions options;
  options.input_middle = true;
  CountingSink counter;
  const BlockTargets targets = MakeBlockTargets(setting.Task(kTwoBits), options, counter);
  const at::Tensor wanted = block.Forward(setting.x, setting.rope);
  const auto error = [&](const std::map<int, at::Tensor>& shifts) {
    const at::NoGradGuard no_grad;
    const EquivalentTransform transform(block, targets.input_max, 0.5, true, shifts);
    Block applied = transform.Apply(block);
    EXPECT_LT(RelativeError(applied.Forward(setting.x, setting.rope), wanted), 2e-5);
    applied.activations.bits = 4;
    return RelativeError(applied.Forward(setting.x, setting.rope), wanted);
  };
  EXPECT_LT(error(targets.input_middle), 0.5 * error({}));
}

// The moving average over windows, whatever the batches (spec: baselines.md 2.2).
TEST(BlockTargetsOf, MiddlesAreAveragedOverTheWindowsInOrder) {
  const Setting setting("opt", nlohmann::json::object(), 8);
  BlockTargetOptions options;
  options.input_middle = true;
  CountingSink counter;
  const BlockTargets targets = MakeBlockTargets(setting.Task(kTwoBits), options, counter);
  const at::NoGradGuard no_grad;
  at::Tensor inputs;  // of the first linear
  setting.block.Forward(setting.x, setting.rope, [&](int index, const at::Tensor& x) {
    if (index == 0) inputs = x;
    return setting.block.Apply(index, x);
  });
  at::Tensor average;
  for (int64_t i = 0; i < inputs.size(0); ++i) {
    const at::Tensor middle = (inputs[i].amax(0) + inputs[i].amin(0)) / 2;
    average = average.defined() ? 0.99 * average + 0.01 * middle : middle;
  }
  EXPECT_TRUE(at::allclose(targets.input_middle.at(0), average, 1e-5, 1e-6));
  EXPECT_TRUE(MakeBlockTargets(setting.Task(kTwoBits), {}, counter).input_middle.empty());
}

// spec/baselines.md 2.6 by way of a weight and inputs that give its maxima.
TEST(EquivalentTransform, GoldenFirstScales) {
  Setting setting("llama", nlohmann::json::object(), 1);
  const int64_t hidden = setting.checkpoint->config().hidden_size;
  Block block = setting.block.Clone();
  const at::Tensor column_max = at::tensor({0.5F, 0.25F, 1.0F, 0.2F}).repeat({hidden / 4});
  block.linears[0].weight = at::ones_like(block.linears[0].weight) * column_max;
  const at::Tensor input_max = at::tensor({4.0F, 1.0F, 0.25F, 0.0F}).repeat({hidden / 4});
  std::map<int, at::Tensor> inputs = {{0, input_max}, {3, input_max}, {4, input_max}};
  const auto first = [&](double alpha) {
    return EquivalentTransform(block, inputs, alpha, true).parameters().at(0).slice(0, 0, 4);
  };
  EXPECT_TRUE(at::allclose(first(0.5), at::tensor({2.828427F, 2.0F, 0.5F, 0.00707107F}), 1e-5));
  EXPECT_TRUE(
      at::allclose(first(0.75), at::tensor({3.363586F, 1.414214F, 0.353553F, 0.000266F}), 1e-3));
}

}  // namespace
}  // namespace quantry::engine
