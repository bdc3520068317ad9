#include "worker/engine/methods/signround/signround.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/rtn/rtn.h"
#include "worker/engine/methods/testing/setting.h"
#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

using test::CountingSink;
using test::RelativeError;
using test::Setting;

struct SignroundCase {
  const char* name;
  const char* architecture;
  GridSpec grid;
  int activation_bits;
};

class SignroundTest : public ::testing::TestWithParam<SignroundCase> {
 protected:
  Setting setting_{GetParam().architecture, nlohmann::json::object(), 24};
  BlockTask Task() const {
    BlockTask task = setting_.Task(GetParam().grid);
    task.activations.bits = GetParam().activation_bits;
    return task;
  }
  double Error(const QuantizedBlock& quantized) const {
    const Block block = Rebuild(setting_.block, quantized, Task().activations);
    return RelativeError(block.Forward(setting_.x, setting_.rope),
                         setting_.block.Forward(setting_.x, setting_.rope));
  }
};

TEST_P(SignroundTest, BeatsRoundingAndReportsItsSteps) {
  SignroundOptions options;
  options.iterations = 60;
  const Signround method(options);
  CountingSink counter;
  const MethodResult result = method.Quantize(Task(), counter);
  EXPECT_EQ(counter.steps(), method.Steps(setting_.checkpoint->architecture(),
                                          setting_.checkpoint->config(), setting_.stream()));
  EXPECT_LT(Error(result.block), 0.95 * Error(Rtn().Quantize(Task(), counter).block));
  EXPECT_LT(result.metrics.at("best_loss"), result.metrics.at("first_loss"));
}

// An offset is at most half a step: without range tuning no code moves by more
// than one from rounding to nearest.
TEST_P(SignroundTest, OffsetsMoveCodesByOneAtMost) {
  SignroundOptions options;
  options.iterations = 20;
  options.tune_ranges = false;
  CountingSink counter;
  const MethodResult result = Signround(options).Quantize(Task(), counter);
  const MethodResult nearest = Rtn().Quantize(Task(), counter);
  int64_t moved = 0;
  for (size_t i = 0; i < result.block.linears.size(); ++i) {
    const QuantizedLinear& got = result.block.linears[i];
    EXPECT_TRUE(at::equal(got.scales, nearest.block.linears[i].scales));
    const at::Tensor step =
        (got.codes.to(at::kInt) - nearest.block.linears[i].codes.to(at::kInt)).abs();
    EXPECT_LE(step.max().item<int>(), 1);
    moved += step.sum().item<int64_t>();
  }
  EXPECT_GT(moved, 0);
}

// Of 24 windows one has no finite loss: a step that meets it goes back to the best.
TEST_P(SignroundTest, ALossThatIsNotFiniteGoesBackToTheBest) {
  BlockTask task = Task();
  SignroundOptions options;
  options.iterations = 20;
  options.batch_size = 1;
  CountingSink counter;
  MethodResult result;
  for (int64_t window = 0; window < 8 && result.metrics.count("retries") == 0; ++window) {
    task.x_q = setting_.x.clone();
    task.x_q[window].fill_(NAN);
    result = Signround(options).Quantize(task, counter);
  }
  EXPECT_GE(result.metrics["retries"], 1);
  EXPECT_LE(result.metrics.at("best_loss"), result.metrics.at("first_loss"));
  EXPECT_LT(Error(result.block), 2 * Error(Rtn().Quantize(Task(), counter).block));
  task.x_q.fill_(NAN);
  const EngineError error = test::ErrorOf([&] { Signround(options).Quantize(task, counter); });
  EXPECT_EQ(error.reason, "NON_FINITE_LOSS");
  for (const char* words : {"block 0, tuning rounding", "before anything is tuned"}) {
    EXPECT_TRUE(test::Mentions(error, words)) << error.what();
  }
}

// Deleting the limit must not go unseen: a window that is a thousand times as loud decides all
// signs without it.
TEST_P(SignroundTest, ALimitOfTokenEnergyIsHeeded) {
  BlockTask task = Task();
  task.x_fp = task.x_q = task.x_q.clone();
  task.x_q[3][0].mul_(1000);
  SignroundOptions options;
  options.iterations = 20;
  CountingSink counter;
  const MethodResult without = Signround(options).Quantize(task, counter);
  options.token_energy_limit = 10;
  const MethodResult with = Signround(options).Quantize(task, counter);
  EXPECT_NE(with.metrics.at("first_loss"), without.metrics.at("first_loss"));
}

// Another type of products must be heeded, and change the first step's loss by its rounding alone.
TEST_P(SignroundTest, ProductsMayBeInBfloat16) {
  const BlockTask task = Task();
  const at::Tensor targets = setting_.block.Forward(setting_.x, setting_.rope);
  SignroundOptions options;
  options.iterations = 20;
  CountingSink counter;
  const SignroundGrids single = TuneRanges(task, targets, options, counter);
  EXPECT_EQ(counter.steps(), options.iterations);
  options.compute = ComputeDtype::kBfloat16;
  const SignroundGrids half = TuneRanges(task, targets, options, counter);
  EXPECT_NE(half.first_loss, single.first_loss);
  EXPECT_NEAR(half.first_loss, single.first_loss, 0.02 * single.first_loss);
  EXPECT_LT(half.best_loss, half.first_loss);
}

// The first step is evaluated before anything moves.
TEST_P(SignroundTest, NoStepOrARateOfZeroIsRounding) {
  SignroundOptions options;
  options.iterations = 1;
  CountingSink counter;
  const MethodResult result = Signround(options).Quantize(Task(), counter);
  const MethodResult nearest = Rtn().Quantize(Task(), counter);
  for (size_t i = 0; i < result.block.linears.size(); ++i) {
    EXPECT_TRUE(at::equal(result.block.linears[i].codes, nearest.block.linears[i].codes));
  }
}

TEST_P(SignroundTest, SameSeedSameBytes) {
  SignroundOptions options;
  options.iterations = 10;
  CountingSink counter;
  BlockTask task = Task();
  const auto codes = [&] {
    return Signround(options).Quantize(task, counter).block.linears[0].codes;
  };
  const at::Tensor first = codes();
  EXPECT_TRUE(at::equal(first, codes()));
  task.seed = 99;
  EXPECT_FALSE(at::equal(first, codes()));
}

INSTANTIATE_TEST_SUITE_P(
    Blocks, SignroundTest,
    ::testing::Values(SignroundCase{"llama_w2", "llama", {2, -1, false}, 16},
                      SignroundCase{"qwen3_w3_groups", "qwen3", {3, 16, false}, 16},
                      SignroundCase{"llama_symmetric", "llama", {3, 32, true}, 16},
                      SignroundCase{"qwen2_w4a6", "qwen2", {4, -1, false}, 6},
                      SignroundCase{"opt_w2", "opt", {2, 8, false}, 16}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace quantry::engine
