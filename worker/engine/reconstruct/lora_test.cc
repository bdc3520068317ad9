#include "worker/engine/reconstruct/lora.h"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numbers>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "worker/engine/nn/transformer.h"
#include "worker/engine/reconstruct/model_backward.h"
#include "worker/engine/reconstruct/testing/one_state.h"
#include "worker/engine/testing/counting_sink.h"
#include "worker/engine/testing/devices.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/threads.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

// Remembers every state.
class AllStates : public TrainingStore {
 public:
  std::optional<TrainingState> Load() override { return std::nullopt; }
  void Save(const TrainingState& state, bool) override { states.push_back(test::Copy(state)); }

  std::vector<TrainingState> states;
};

// Gradient number `tensor` of the update that led to states[i], clipped.
at::Tensor GradientOf(const std::vector<TrainingState>& states, size_t i, size_t tensor) {
  const at::Tensor& now = states[i].moments[tensor];  // mean = 0.9 mean + 0.1 gradient
  return i == 0 ? now / 0.1 : (now - states[i - 1].moments[tensor] * 0.9) / 0.1;
}

class LoraTest : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  void SetUp() override {
    QUANTRY_TAKE_DEVICE(device_, std::get<1>(GetParam()));
    test::MakeTinyModel(std::get<0>(GetParam())).Write(dir_.path());
    checkpoint_ = Checkpoint::Open(dir_.path());
    rope_ = MakeRopeTable(checkpoint_->architecture(), checkpoint_->config(), 12, device_);
    at::manual_seed(3);
    windows_ = at::randint(0, checkpoint_->config().vocab_size, {8, 12}, at::kLong);
    options_.steps = 40;
    options_.learning_rate = 0.02;
    options_.rank = 4;
  }

  std::vector<Block> Blocks() const {
    std::vector<Block> blocks;
    for (int b = 0; b < checkpoint_->config().num_layers; ++b) {
      blocks.push_back(LoadBlock(*checkpoint_, b, device_));
    }
    return blocks;
  }

  LoraReport Train(std::vector<Block>& blocks, TrainingStore* store = nullptr) {
    return TrainLora(*checkpoint_, rope_, windows_, device_, options_, store, blocks, progress_);
  }

  // Next-token loss of whole logits, ATen's own.
  at::Tensor Loss(const std::vector<Block>& blocks, const at::Tensor& windows) const {
    at::Tensor hidden = Embed(*checkpoint_, windows, device_);
    for (const Block& block : blocks) hidden = block.Forward(hidden, rope_);
    const OutputHead head(*checkpoint_, device_);
    const at::Tensor logits =
        at::matmul(head.Normalize(hidden), head.Rows(0, head.vocab_size()).t()).slice(1, 0, -1);
    return at::cross_entropy_loss(logits.reshape({-1, logits.size(-1)}),
                                  windows.slice(1, 1).reshape({-1}).to(device_));
  }

  // The learning rate of the update that led to states[i], from what it did to
  // the B of the first linear.
  static double RateOf(const std::vector<TrainingState>& states, size_t i,
                       const at::Tensor& before) {
    const double steps = static_cast<double>(i) + 1;
    const size_t moments = states[i].moments.size() / 2;
    const at::Tensor mean = states[i].moments[1] / (1 - std::pow(0.9, steps));
    const at::Tensor square = states[i].moments[moments + 1] / (1 - std::pow(0.999, steps));
    const at::Tensor direction = (mean / (square.sqrt() + 1e-8)).to(at::kDouble);
    const at::Tensor moved = (before - states[i].tensors[1]).to(at::kDouble);
    return ((moved * direction).sum() / direction.square().sum()).item<double>();
  }

  // Rates of all updates.
  std::vector<double> Rates() {
    AllStates store;
    std::vector<Block> blocks = Blocks();
    Train(blocks, &store);
    std::vector<double> rates;
    for (size_t i = 0; i < store.states.size(); ++i) {
      const at::Tensor& now = store.states[i].tensors[1];
      rates.push_back(
          RateOf(store.states, i, i == 0 ? at::zeros_like(now) : store.states[i - 1].tensors[1]));
    }
    return rates;
  }

  // Norm of the first update's gradients, as they are used.
  double FirstNorm() {
    AllStates store;
    std::vector<Block> blocks = Blocks();
    Train(blocks, &store);
    double squares = 0;
    for (size_t t = 0; t < store.states[0].tensors.size(); ++t) {
      squares += GradientOf(store.states, 0, t).square().sum(at::kDouble).item<double>();
    }
    return std::sqrt(squares);
  }

  // What the job's first step leaves with so many threads.
  TrainingState AfterOneStep(int threads) {
    const test::Threads so_many(threads);
    AllStates store;
    std::vector<Block> blocks = Blocks();
    Train(blocks, &store);
    return store.states.at(0);
  }

  // Largest change of a linear with that role.
  double Change(LinearRole role) {
    const std::vector<Block> before = Blocks();
    std::vector<Block> blocks = Blocks();
    Train(blocks);
    const int i = checkpoint_->architecture().LinearIndex(role);
    return (blocks[0].linears[i].weight - before[0].linears[i].weight).abs().max().item<double>();
  }

  at::Device device_ = at::kCPU;
  test::TempDir dir_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  RopeTable rope_;
  at::Tensor windows_;
  LoraOptions options_;
  test::CountingSink progress_;
};

TEST_P(LoraTest, LowersTheLossAndLeavesTheOtherLinears) {
  const std::vector<Block> before = Blocks();
  std::vector<Block> blocks = Blocks();
  const LoraReport report = Train(blocks);
  EXPECT_EQ(progress_.steps(), options_.steps * PassSteps(std::ssize(blocks)));
  EXPECT_LT(report.loss_last, 0.9 * report.loss_first);
  EXPECT_LT(Loss(blocks, windows_).item<double>(), 0.9 * Loss(before, windows_).item<double>());
  EXPECT_GT(report.relative_change, 0);
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (size_t i = 0; i < blocks[b].linears.size(); ++i) {
      const at::Tensor change = blocks[b].linears[i].weight - before[b].linears[i].weight;
      if (blocks[b].architecture->linears[i].role == LinearRole::kAttentionOut) {
        EXPECT_EQ(change.abs().max().item<float>(), 0);
      } else {
        EXPECT_GT(change.abs().max().item<float>(), 0);
        const at::Tensor values = at::linalg_svdvals(change.to(at::kDouble));
        EXPECT_LT(values[4].item<double>(), 1e-4 * values[0].item<double>());
      }
    }
  }
}

// Spec 5.1: rank 64 and alpha / 64, in linears with a side below 64 too.
TEST_P(LoraTest, TheDefaultRankIsTheSameInEveryLinear) {
  options_.rank = 0;
  options_.steps = 2;
  options_.warmup_steps = 0;
  AllStates store;
  const std::vector<Block> before = Blocks();
  std::vector<Block> blocks = Blocks();
  Train(blocks, &store);
  const std::vector<at::Tensor>& adapters = store.states.back().tensors;
  size_t next = 0;
  int64_t narrow = 0;
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (size_t i = 0; i < blocks[b].linears.size(); ++i) {
      if (blocks[b].architecture->linears[i].role == LinearRole::kAttentionOut) continue;
      const at::Tensor& a = adapters.at(next++);
      const at::Tensor wanted = at::mm(adapters.at(next++), a) * (options_.alpha / 64);
      const at::Tensor change = blocks[b].linears[i].weight - before[b].linears[i].weight;
      EXPECT_GT(wanted.norm().item<double>(), 1e-3);
      EXPECT_TRUE(at::allclose(change.cpu(), wanted, 1e-3, 1e-6)) << blocks[b].linears[i].name;
      EXPECT_EQ(a.size(0), 64);
      narrow += std::min(change.size(0), change.size(1)) < 64 ? 1 : 0;
    }
  }
  EXPECT_EQ(next, adapters.size());
  EXPECT_GT(narrow, 0);
}

TEST_P(LoraTest, TheFirstLossIsThatOfTheModelItself) {
  options_.steps = 1;  // B is 0
  options_.accumulation = windows_.size(0);
  std::vector<Block> blocks = Blocks();
  EXPECT_NEAR(Train(blocks).loss_first, Loss(Blocks(), windows_).item<double>(), 1e-5);
}

TEST_P(LoraTest, GoesOnFromAStateWithTheSameBits) {
  std::vector<Block> whole = Blocks();
  test::OneState store(17);
  const LoraReport undisturbed = Train(whole, &store);
  std::vector<Block> resumed = Blocks();
  const LoraReport report = Train(resumed, &store);
  EXPECT_EQ(report.loss_first, undisturbed.loss_first);
  EXPECT_EQ(report.loss_last, undisturbed.loss_last);
  for (size_t b = 0; b < whole.size(); ++b) {
    for (size_t i = 0; i < whole[b].linears.size(); ++i) {
      EXPECT_TRUE(whole[b].linears[i].weight.equal(resumed[b].linears[i].weight));
    }
  }
}

// Remembers what a phase began with, and the steps told before it.
class PhaseSink : public ProgressSink {
 public:
  void Advance(int64_t steps, std::string_view) override {
    steps_ += steps;
    longest_ = std::max(longest_, steps);
  }
  void PhaseStarted(int64_t steps) override { began_.emplace_back(steps_, steps); }
  const std::vector<std::pair<int64_t, int64_t>>& began() const { return began_; }
  int64_t steps() const { return steps_; }
  int64_t longest() const { return longest_; }

 private:
  int64_t steps_ = 0;
  int64_t longest_ = 0;  // told at once
  std::vector<std::pair<int64_t, int64_t>> began_;
};

TEST_P(LoraTest, StepsOfAStateAreNoneOfThePhases) {
  test::OneState store(17);
  for (const int64_t resumed : {0, 17}) {
    PhaseSink sink;
    std::vector<Block> blocks = Blocks();
    TrainLora(*checkpoint_, rope_, windows_, device_, options_, &store, blocks, sink);
    ASSERT_EQ(sink.began().size(), 1U);
    const int64_t of_step = PassSteps(std::ssize(blocks));
    EXPECT_EQ(sink.began()[0],
              std::make_pair(resumed * of_step, (options_.steps - resumed) * of_step));
    EXPECT_EQ(sink.steps(), options_.steps * of_step);
    EXPECT_EQ(sink.longest(), resumed == 0 ? 1 : resumed * of_step) << "within a step, too";
  }
}

TEST_P(LoraTest, RefusesARankNoLinearHolds) {
  options_.rank = 1 << 15;
  const EngineError error = test::ErrorOf(
      [&] { CheckLora(options_, checkpoint_->architecture(), checkpoint_->config()); });
  EXPECT_EQ(error.reason, "INVALID_SPEC");
  EXPECT_TRUE(test::Mentions(error, "preprocessing.lora.rank"));
  options_.rank = 0;
  CheckLora(options_, checkpoint_->architecture(), checkpoint_->config());
}

// Hands out one state, and remembers another: of the training that began again.
class SecondTry : public TrainingStore {
 public:
  explicit SecondTry(TrainingState state) : given_(std::move(state)) {}
  std::optional<TrainingState> Load() override { return given_; }
  void Save(const TrainingState& state, bool) override {
    if (state.retries == 1 && state.steps_done == 2) kept = test::Copy(state);
  }

  TrainingState kept;

 private:
  TrainingState given_;
};

// The loss is that before an update: what the last one did is looked at as well, and not kept.
TEST_P(LoraTest, ALastUpdateThatIsNotFiniteBeginsAgainAtATenthOfTheRate) {
  options_.steps = 3;
  test::OneState store(2);
  std::vector<Block> blocks = Blocks(), again = Blocks(), resumed = Blocks(), slow = Blocks();
  Train(blocks, &store);
  store.kept().moments[0].fill_(NAN);
  SecondTry second(store.kept());
  EXPECT_EQ(Train(again, &second).retries, 1);
  SecondTry third(second.kept);
  EXPECT_EQ(Train(resumed, &third).retries, 1);
  options_.learning_rate /= 10;
  Train(slow);
  const at::Tensor weight = again[0].linears[0].weight;
  EXPECT_TRUE(weight.equal(resumed[0].linears[0].weight)) << "as one that was not interrupted";
  EXPECT_TRUE(at::allclose(weight, slow[0].linears[0].weight, 1e-6, 1e-7));
  EXPECT_FALSE(at::allclose(weight, blocks[0].linears[0].weight, 1e-6, 1e-7));
}

TEST_P(LoraTest, WhatStaysNotFiniteIsAnError) {
  options_.steps = 3;
  options_.learning_rate = std::numeric_limits<double>::infinity();
  std::vector<Block> blocks = Blocks();
  const EngineError error = test::ErrorOf([&] { Train(blocks); });
  EXPECT_EQ(error.reason, "NON_FINITE_LOSS");
  EXPECT_TRUE(test::Mentions(error, "training adapters, step ")) << error.what();
  EXPECT_TRUE(test::Mentions(error, "also at a hundredth of the learning rates")) << error.what();
}

// Gradients of every weight against autograd through the whole model at once.
TEST_P(LoraTest, BlockByBlockGradientsAreTheModels) {
  std::vector<Block> blocks = Blocks();
  for (Block& block : blocks) {
    for (Linear& linear : block.linears) linear.weight.requires_grad_(true);
  }
  std::vector<at::Tensor> wanted;
  {
    const c10::AutoGradMode with_gradients(true);
    Loss(blocks, windows_).backward();
  }
  for (Block& block : blocks) {
    for (Linear& linear : block.linears) {
      wanted.push_back(linear.weight.grad().clone());
      linear.weight.mutable_grad() = at::Tensor();
    }
  }
  const OutputHead head(*checkpoint_, device_);
  ModelPass pass;
  size_t collected = 0;
  pass.forward = [&](size_t b, const at::Tensor& x) { return blocks[b].Forward(x, rope_); };
  pass.collect = [&](size_t) { ++collected; };
  pass.loss = [&](const at::Tensor& outputs, at::Tensor& slope) {
    const c10::AutoGradMode with_gradients(true);
    const at::Tensor leaf = outputs.detach().requires_grad_(true);
    const at::Tensor logits =
        at::matmul(head.Normalize(leaf), head.Rows(0, head.vocab_size()).t()).slice(1, 0, -1);
    const at::Tensor loss = at::cross_entropy_loss(logits.reshape({-1, logits.size(-1)}),
                                                   windows_.slice(1, 1).reshape({-1}).to(device_));
    loss.backward();
    slope = leaf.grad();
    return loss.item<double>();
  };
  BackwardThroughModel(Embed(*checkpoint_, windows_, device_), blocks.size(), pass);
  EXPECT_EQ(collected, blocks.size());
  size_t next = 0;
  for (const Block& block : blocks) {
    for (const Linear& linear : block.linears) {
      EXPECT_TRUE(at::allclose(linear.weight.grad(), wanted[next++], 1e-4, 1e-7)) << linear.name;
    }
  }
}

// Rising by equal steps from 0, then half a cosine down to 0 after the last.
TEST_P(LoraTest, RatesRiseAndFallAsTheyShould) {
  constexpr double kPeak = 0.004;
  options_.learning_rate = kPeak;
  options_.steps = 12;
  options_.warmup_steps = 4;
  const std::vector<double> rates = Rates();
  ASSERT_EQ(rates.size(), 12U);
  for (int step = 0; step < 12; ++step) {
    const double wanted =
        step < 4 ? kPeak * step / 4 : kPeak * (1 + std::cos(std::numbers::pi * (step - 4) / 8)) / 2;
    EXPECT_NEAR(rates[step], wanted, 1e-3 * kPeak) << step;
  }
}

TEST_P(LoraTest, ATenthOfTheStepsWarmsUpUnlessSaid) {
  options_.learning_rate = 0.004;
  options_.steps = 20;
  const std::vector<double> rates = Rates();
  EXPECT_NEAR(rates[0], 0, 1e-6);
  EXPECT_NEAR(rates[1], 0.002, 1e-5);
  EXPECT_NEAR(rates[2], 0.004, 1e-5);
}

TEST_P(LoraTest, GradientsAreClippedToTheirNorm) {
  options_.steps = 1;
  options_.warmup_steps = 0;
  options_.clip_norm = 1e9;
  const double whole = FirstNorm();
  EXPECT_GT(whole, 1e-3);
  options_.clip_norm = whole / 10;
  EXPECT_NEAR(FirstNorm(), whole / 10, 1e-3 * whole / 10);
  options_.clip_norm = whole * 2;
  EXPECT_NEAR(FirstNorm(), whole, 1e-3 * whole);
}

// All inputs left out: nothing to learn from. Without, another result.
TEST_P(LoraTest, DropoutLeavesInputsOut) {
  options_.steps = 3;
  options_.dropout = 1 - 1e-9;
  EXPECT_EQ(Change(LinearRole::kUp), 0);
  options_.dropout = 0;
  const double none = Change(LinearRole::kUp);
  options_.dropout = 0.5;
  const double half = Change(LinearRole::kUp);
  EXPECT_GT(none, 0);
  EXPECT_NE(half, none);
  EXPECT_EQ(half, Change(LinearRole::kUp)) << "the same seed";
}

// Each window leaves out the same of its inputs, whichever it is trained with.
TEST_P(LoraTest, WhatDropoutLeavesOutIsAWindowsOwn) {
  options_.steps = 1;
  options_.warmup_steps = 0;
  options_.dropout = 0.5;
  options_.accumulation = windows_.size(0);
  const TrainingState together = AfterOneStep(1), halves = AfterOneStep(2);
  for (size_t i = 0; i < together.moments.size() / 2; ++i) {  // the gradients
    EXPECT_TRUE(at::allclose(together.moments[i], halves.moments[i], 1e-3, 1e-7)) << i;
  }
}

// Windows of more than half a batch are taken one by one: twice the same one
// gives exactly what it gives alone, which their products together would not.
TEST_P(LoraTest, AnUpdateTakesAFewWindowsAtATime) {
  constexpr int64_t kTokens = 600;
  test::MakeTinyModel(std::get<0>(GetParam()), {{"max_position_embeddings", kTokens}})
      .Write(dir_.path());
  checkpoint_ = Checkpoint::Open(dir_.path());
  rope_ = MakeRopeTable(checkpoint_->architecture(), checkpoint_->config(), kTokens, device_);
  windows_ = at::randint(0, checkpoint_->config().vocab_size, {1, kTokens}, at::kLong);
  options_.steps = 1;
  options_.warmup_steps = 0;
  options_.dropout = 0;
  options_.accumulation = 1;
  const TrainingState once = AfterOneStep(1);
  options_.accumulation = 2;
  const TrainingState twice = AfterOneStep(1);
  for (size_t i = 0; i < once.moments.size() / 2; ++i) {
    EXPECT_TRUE(once.moments[i].equal(twice.moments[i])) << i;
  }
}

// Bytes are those of the windows taken at a time, one batch a thread.
TEST_P(LoraTest, BytesGrowWithWhatIsHeld) {
  const auto bytes = [&](int64_t length) {
    return LoraBytes(options_, checkpoint_->architecture(), checkpoint_->config(), length,
                     at::kCPU);
  };
  int64_t weights = 0;
  for (const Block& block : Blocks()) {
    for (const Linear& linear : block.linears) weights += linear.weight.numel();
  }
  options_.accumulation = 1;
  const int64_t small = bytes(512);
  EXPECT_GT(small, weights * 4);
  EXPECT_GT(bytes(1024), small);
  options_.accumulation = 1000 * at::get_num_threads();
  const int64_t many = bytes(512);
  EXPECT_GT(many, small);
  options_.accumulation *= 100;
  EXPECT_EQ(bytes(512), many);
  options_.rank = 8;
  EXPECT_GT(bytes(512), many);
}

TEST_P(LoraTest, TheAttentionsOutputIsAdaptedWhereAskedFor) {
  options_.steps = 3;
  EXPECT_EQ(Change(LinearRole::kAttentionOut), 0);
  options_.attention_output = true;
  EXPECT_GT(Change(LinearRole::kAttentionOut), 0);
}

INSTANTIATE_TEST_SUITE_P(Models, LoraTest,
                         ::testing::Combine(::testing::Values("llama", "opt"), test::kDevices),
                         [](const auto& of) {
                           return std::string(std::get<0>(of.param)) + "_" + std::get<1>(of.param);
                         });

}  // namespace
}  // namespace quantry::engine
