#include "worker/engine/reconstruct/progressive_rounding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "worker/engine/base/error.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/reconstruct/rounding_schedule.h"
#include "worker/engine/reconstruct/testing/stopping_store.h"
#include "worker/engine/reconstruct/token_weights.h"
#include "worker/engine/testing/devices.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/threads.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

const GridSpec kTwoBits = {2, -1, false};

// Counts as CountingSink does.
class Quiet : public ProgressSink {
 public:
  void Advance(int64_t count, std::string_view) override {
    steps += count;
    ++advances;
  }
  void Extend(int64_t count) override { steps -= count; }
  void Measure(const std::map<std::string, double>& figures) override {
    for (const auto& [name, value] : figures) last[name] = value;
  }
  int64_t steps = 0;
  int64_t advances = 0;
  std::map<std::string, double> last;
};

// A random block, its inputs and its full-precision outputs.
struct Setting {
  explicit Setting(const std::string& architecture = "llama", int64_t windows = 24,
                   const nlohmann::json& changes = nlohmann::json::object(),
                   const at::Device& device = at::kCPU) {
    test::MakeTinyModel(architecture, changes).Write(dir.path());
    checkpoint = Checkpoint::Open(dir.path());
    block = LoadBlock(*checkpoint, 0);
    rope = MakeRopeTable(checkpoint->architecture(), checkpoint->config(), 16);
    at::manual_seed(7);
    x = at::randn({windows, 16, checkpoint->config().hidden_size});
    y = block.Forward(x, rope);
    on_device = block.To(device);
    rope = rope.To(device);
    objective = std::make_unique<BlockObjective>(on_device, rope, x, y, device);
  }

  TrainedBlock Fresh(int reach = 1, const GridSpec& grid = kTwoBits) const {
    TrainedBlock trained;
    for (const Linear& linear : block.linears) {
      trained.linears.emplace_back(linear.weight, MinMaxGrid(linear.weight, grid, at::kHalf), grid,
                                   ScaleCurve::kRectifiedSigmoid, reach);
    }
    return trained;
  }

  double LossOf(const TrainedBlock& trained, int64_t windows = 24) const {
    return objective->Loss(TensorsOf(trained), windows);
  }
  double NearestLoss() const { return objective->Loss(Nearest()); }

  static TrainableTensors TensorsOf(const TrainedBlock& trained) {
    TrainableTensors at;
    for (const SoftRounding& linear : trained.linears) at.weights.push_back(linear.weight());
    at.dense = trained.dense;
    return at;
  }

  TrainableTensors Nearest() const {
    TrainableTensors at;
    for (const Linear& linear : block.linears) {
      at.weights.push_back(FakeQuantize(linear.weight, kTwoBits, at::kHalf));
    }
    return at;
  }

  // What training never saw.
  BlockObjective HeldOut(int64_t windows = 24) const {
    at::manual_seed(11);
    const at::Tensor inputs = at::randn({windows, 16, checkpoint->config().hidden_size});
    const at::Device device = on_device.linears[0].weight.device();
    return {on_device, rope, inputs, on_device.Forward(inputs.to(device), rope).cpu(), device};
  }

  test::TempDir dir;
  std::shared_ptr<const Checkpoint> checkpoint;
  Block block;  // on the host
  Block on_device;
  RopeTable rope;  // on the device
  at::Tensor x, y;
  std::unique_ptr<BlockObjective> objective;
};

ProgressiveRoundingOptions Fast() {
  ProgressiveRoundingOptions options;
  options.schedule = ScheduleOf(20);
  options.steps_per_stage = 12;
  options.rates.rounding = options.rates.scale = 0.02;
  return options;
}

// T12: losses of twenty stages, each on windows of its own, grow: most from one
// stage to the next, and all from one five to the next.
void ExpectNoisilyIncreasing(const std::vector<double>& losses) {
  ASSERT_EQ(losses.size(), 20U);
  int up = 0;
  for (size_t i = 1; i < losses.size(); ++i) up += losses[i] > losses[i - 1] ? 1 : 0;
  EXPECT_GE(up, 12);  // of 19
  double before = 0;
  for (auto five = losses.begin(); five != losses.end(); five += 5) {
    const double sum = std::accumulate(five, five + 5, 0.0);
    EXPECT_GT(sum, 1.05 * before) << five - losses.begin();
    before = sum;
  }
}

class ArchitectureTest : public ::testing::TestWithParam<const char*> {};

// `limit`: of a token's energy, 0 = none.
void ExpectGradientsOfFiniteDifferences(const std::string& architecture, double limit) {
  // A smooth activation for OPT too: finite differences stumble over ReLU.
  const bool opt = architecture == "opt";
  const Setting setting(
      architecture, 4,
      opt ? nlohmann::json{{"activation_function", "gelu"}} : nlohmann::json::object());
  setting.objective->LimitTokens(limit);
  TrainableTensors at;
  for (const Linear& linear : setting.block.linears) {
    at.weights.push_back(linear.weight + at::randn_like(linear.weight) * 0.05);
  }
  Block copy = setting.block;
  for (const at::Tensor* tensor : DenseParameters(copy)) at.dense.push_back(tensor->clone());
  const BlockObjective::Result result = setting.objective->Gradients({0, 1, 2, 3}, at);
  EXPECT_NEAR(result.loss, setting.objective->Loss(at), 1e-4 * result.loss);
  const auto check = [&](at::Tensor& tensor, const at::Tensor& gradient) {
    const at::Tensor direction = at::randn_like(tensor);
    const at::Tensor before = tensor.clone();
    const double h = 2e-3;
    tensor = before + direction * h;
    const double up = setting.objective->Loss(at);
    tensor = before - direction * h;
    const double down = setting.objective->Loss(at);
    tensor = before;
    const double wanted = (gradient * direction).sum().item<double>();
    EXPECT_NEAR((up - down) / (2 * h), wanted, 2e-2 * std::abs(wanted) + 2e-3 * result.loss);
  };
  for (size_t i = 0; i < at.weights.size(); ++i) check(at.weights[i], result.weight_gradients[i]);
  for (size_t i = 0; i < at.dense.size(); ++i) check(at.dense[i], result.dense_gradients[i]);
}

TEST_P(ArchitectureTest, GradientsMatchFiniteDifferences) {
  ExpectGradientsOfFiniteDifferences(GetParam(), 0);
}

TEST_P(ArchitectureTest, GradientsWithLimitedTokensMatchFiniteDifferences) {
  ExpectGradientsOfFiniteDifferences(GetParam(), 0.5);
}

TEST(RootTokenWeightsTest, TokensAboveTheLimitCountAsIfAtIt) {
  at::Tensor targets = at::ones({1, 5, 4});  // norms of 2
  targets[0][3] *= 50;
  const at::Tensor roots = RootTokenWeights(targets, 9);  // three times the median norm
  ASSERT_EQ(roots.sizes(), (at::IntArrayRef{1, 5, 1}));
  EXPECT_FLOAT_EQ(roots[0][0].item<float>(), 1);
  EXPECT_FLOAT_EQ(roots[0][3].item<float>(), 6.0F / 100);
  EXPECT_FLOAT_EQ(MostTokenEnergy(targets, 9), 36);
  EXPECT_EQ(MostTokenEnergy(targets, 0), std::numeric_limits<double>::infinity());
  EXPECT_EQ(MostTokenEnergy(targets, 2500), std::numeric_limits<double>::infinity());
  EXPECT_FALSE(RootTokenWeights(targets, 0).defined());
  EXPECT_FALSE(RootTokenWeights(targets, 2500).defined()) << "none exceeds it";
  EXPECT_FALSE(RootTokenWeights(at::zeros({1, 5, 4}), 9).defined());
}

TEST(BlockObjectiveTest, ATokenAboveTheLimitCountsLess) {
  const Setting setting("llama", 4);
  at::Tensor targets = setting.y.clone();
  targets[1][2] *= 100;
  BlockObjective objective(setting.block, setting.rope, setting.x, targets, at::kCPU);
  const TrainableTensors at = setting.Nearest();
  const double all = objective.Loss(at);
  objective.LimitTokens(10);
  EXPECT_LT(objective.Loss(at), 0.1 * all);
  EXPECT_NEAR(objective.Gradients({0, 1, 2, 3}, at).loss, objective.Loss(at),
              1e-4 * objective.Loss(at));
}

// Threads decide how windows are split, so they change the order of sums and nothing else.
TEST_P(ArchitectureTest, GradientsAreThoseOfAnyNumberOfThreads) {
  const Setting setting(GetParam(), 6);
  TrainableTensors at = setting.Nearest();
  Block copy = setting.block;
  for (const at::Tensor* tensor : DenseParameters(copy)) at.dense.push_back(tensor->clone());
  const auto with = [&](int count) {
    const test::Threads threads(count);
    return setting.objective->Gradients({0, 1, 2, 3, 4, 5}, at);
  };
  const BlockObjective::Result one = with(1), three = with(3), again = with(3);
  EXPECT_NEAR(three.loss, one.loss, 1e-5 * one.loss);
  EXPECT_EQ(again.loss, three.loss);
  const auto compare = [](const std::vector<at::Tensor>& wanted, const std::vector<at::Tensor>& got,
                          const std::vector<at::Tensor>& repeated) {
    ASSERT_EQ(got.size(), wanted.size());
    double largest = 0;  // a key's bias has no gradient but for rounding
    for (const at::Tensor& gradient : wanted) {
      largest = std::max(largest, gradient.norm().item<double>());
    }
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_LT((got[i] - wanted[i]).norm().item<double>(), 1e-5 * largest) << i;
      EXPECT_TRUE(at::equal(repeated[i], got[i])) << i;
    }
  };
  compare(one.weight_gradients, three.weight_gradients, again.weight_gradients);
  compare(one.dense_gradients, three.dense_gradients, again.dense_gradients);
  EXPECT_EQ(three.dense_gradients.size(), at.dense.size());
}

INSTANTIATE_TEST_SUITE_P(All, ArchitectureTest,
                         ::testing::Values("llama", "qwen2", "qwen3", "opt"));

class DeviceTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { QUANTRY_TAKE_DEVICE(device_, GetParam()); }
  at::Device device_ = at::kCPU;
};

INSTANTIATE_TEST_SUITE_P(All, DeviceTest, test::kDevices,
                         [](const auto& device) { return std::string(device.param); });

TEST_P(DeviceTest, GradientsAndLossesAreTheHosts) {
  const Setting host("llama", 4), there("llama", 4, nlohmann::json::object(), device_);
  TrainableTensors at;
  for (const Linear& linear : host.block.linears) {
    at.weights.push_back(FakeQuantize(linear.weight, kTwoBits, at::kHalf));
  }
  Block copy = host.block;
  for (const at::Tensor* tensor : DenseParameters(copy)) at.dense.push_back(tensor->clone());
  const BlockObjective::Result wanted = host.objective->Gradients({0, 1, 2, 3}, at);
  const BlockObjective::Result got = there.objective->Gradients({0, 1, 2, 3}, at);
  EXPECT_NEAR(got.loss, wanted.loss, 1e-4 * wanted.loss);
  EXPECT_NEAR(there.objective->Loss(at), wanted.loss, 1e-4 * wanted.loss);
  const auto same = [](const at::Tensor& a, const at::Tensor& b) {
    EXPECT_TRUE(a.is_cpu());
    EXPECT_LT((a - b).norm().item<double>(), 1e-4 * b.norm().item<double>());
  };
  for (size_t i = 0; i < at.weights.size(); ++i) {
    same(got.weight_gradients[i], wanted.weight_gradients[i]);
  }
  for (size_t i = 0; i < at.dense.size(); ++i) {
    same(got.dense_gradients[i], wanted.dense_gradients[i]);
  }
}

TEST_P(DeviceTest, T12_T13_TrainingBeatsRounding) {
  const Setting setting("llama", 24, nlohmann::json::object(), device_);
  TrainedBlock trained = setting.Fresh();
  const double start = setting.LossOf(trained);
  const double nearest = setting.NearestLoss();
  EXPECT_LT(start, 0.2 * nearest);
  Quiet progress;
  const RoundingReport report =
      ProgressiveRounding(0, *setting.objective, Fast(), progress).Run(trained, nullptr);
  EXPECT_EQ(progress.steps, ProgressiveRounding::Steps(Fast()));
  const double final = setting.LossOf(trained);
  EXPECT_LT(report.stage_losses.front(), 0.5 * nearest);
  ExpectNoisilyIncreasing(report.stage_losses);
  EXPECT_LT(final, 0.6 * nearest);
  EXPECT_LE(final, 1.1 * report.loss_soft);
  const BlockObjective unseen = setting.HeldOut();
  EXPECT_LT(unseen.Loss(Setting::TensorsOf(trained)), 0.65 * unseen.Loss(setting.Nearest()));
  EXPECT_EQ(progress.last.at("stage"), 20);
  EXPECT_EQ(progress.last.at("stages"), 20);
  EXPECT_EQ(progress.last.at("stage_step"), 12);
  EXPECT_EQ(progress.last.at("stage_steps"), 12);
  EXPECT_NEAR(progress.last.at("hard_fraction"), 0.995, 2e-3);
  EXPECT_EQ(progress.last.at("loss_soft"), report.loss_soft);
  EXPECT_EQ(progress.last.at("loss_hard"), setting.LossOf(trained, Fast().batch_size));
  // The block of integers and stored scales (T19, from the disk: run_test.cc).
  TrainableTensors rebuilt;
  for (size_t i = 0; i < trained.linears.size(); ++i) {
    EXPECT_EQ(trained.linears[i].live(), 0);
    rebuilt.weights.push_back(trained.linears[i].Finish("x", {}, at::kHalf).Dequantize());
  }
  EXPECT_NEAR(setting.objective->Loss(rebuilt), final, 0.01 * final);
}

TEST(ProgressiveRoundingTest, T14_OneStageWithoutHardeningIsFarWorse) {
  const Setting setting;
  TrainedBlock progressive = setting.Fresh();
  TrainedBlock at_once = setting.Fresh();
  Quiet progress;
  ProgressiveRounding(0, *setting.objective, Fast(), progress).Run(progressive, nullptr);
  ProgressiveRoundingOptions options = Fast();
  options.steps_per_stage *= static_cast<int64_t>(options.schedule.size());
  options.schedule = {0.999999};
  ProgressiveRounding(0, *setting.objective, options, progress).Run(at_once, nullptr);
  EXPECT_GT(setting.LossOf(at_once), 3 * setting.LossOf(progressive));
  EXPECT_GT(setting.LossOf(at_once), setting.NearestLoss());
}

TEST(ProgressiveRoundingTest, T25_SameSeedSameBytesAndNoRepeats) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const std::vector<int64_t> drawn = DrawWindows(9, 8, seed);
    EXPECT_EQ(std::set<int64_t>(drawn.begin(), drawn.end()).size(), 8U);
    EXPECT_EQ(drawn, DrawWindows(9, 8, seed));
  }
  const Setting setting;
  std::vector<TrainedBlock> runs;
  for (const uint64_t seed : {1, 1, 2}) {
    ProgressiveRoundingOptions options = Fast();
    options.seed = seed;
    Quiet progress;
    runs.push_back(setting.Fresh());
    ProgressiveRounding(0, *setting.objective, options, progress).Run(runs.back(), nullptr);
  }
  EXPECT_TRUE(runs[0].linears[0].weight().equal(runs[1].linears[0].weight()));
  EXPECT_FALSE(runs[0].linears[0].weight().equal(runs[2].linears[0].weight()));
}

TEST(WindowsTest, AnEpochTakesEachWindowOnceAndTheNextInAnotherOrder) {
  std::vector<std::vector<int64_t>> epochs;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> taken;
    for (int64_t batch = 0; batch < 3; ++batch) {  // 3 of 11 windows, 2 wait
      const std::vector<int64_t> drawn = EpochWindows(11, 3, 3 * epoch + batch, 7);
      EXPECT_EQ(drawn, EpochWindows(11, 3, 3 * epoch + batch, 7));
      taken.insert(taken.end(), drawn.begin(), drawn.end());
    }
    EXPECT_EQ(std::set<int64_t>(taken.begin(), taken.end()).size(), 9U);
    epochs.push_back(taken);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
}

class ReachTest : public ::testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(All, ReachTest, ::testing::Values(1, 2));

TEST_P(ReachTest, ResumesInsideABlockWithTheSameBytes) {
  const Setting setting;
  ProgressiveRoundingOptions options = Fast();
  options.steps_per_stage = 4;
  options.dense_rate = 0.001;
  options.final_steps = 5;
  options.held_out = 8;
  const auto fresh = [&] {
    TrainedBlock trained = setting.Fresh(GetParam());
    Block copy = setting.block;
    for (const at::Tensor* tensor : DenseParameters(copy)) trained.dense.push_back(tensor->clone());
    return trained;
  };
  Quiet progress;
  TrainedBlock whole = fresh();
  ProgressiveRounding(0, *setting.objective, options, progress).Run(whole, nullptr);
  test::StoppingStore memory;
  for (const int stop : {3, 11, 20, -1}) {
    memory.stop_after = stop;
    Quiet counter;
    TrainedBlock parts = fresh();
    ProgressiveRounding run(0, *setting.objective, options, counter);
    if (stop > 0) {
      EXPECT_THROW(run.Run(parts, &memory), EngineError);
      continue;
    }
    run.Run(parts, &memory);
    EXPECT_EQ(counter.steps, ProgressiveRounding::Steps(options));
    for (size_t i = 0; i < parts.linears.size(); ++i) {
      EXPECT_TRUE(parts.linears[i].weight().equal(whole.linears[i].weight()));
    }
    EXPECT_TRUE(parts.dense[0].equal(whole.dense[0]));
  }
}

TEST_P(ReachTest, TrainingBeatsRoundingOnWindowsItNeverSaw) {
  const Setting setting;
  TrainedBlock trained = setting.Fresh(GetParam());
  Quiet progress;
  ProgressiveRounding(0, *setting.objective, Fast(), progress).Run(trained, nullptr);
  EXPECT_LT(setting.LossOf(trained), 0.6 * setting.NearestLoss());
  const BlockObjective unseen = setting.HeldOut();
  EXPECT_LT(unseen.Loss(Setting::TensorsOf(trained)), 0.65 * unseen.Loss(setting.Nearest()));
}

// A loss of windows that are held out would not be finite.
TEST(ProgressiveRoundingTest, HeldOutWindowsAreNeverSeen) {
  const Setting setting;
  at::Tensor targets = setting.y.clone();
  targets.slice(0, 18, 24).fill_(std::numeric_limits<float>::infinity());
  const BlockObjective objective(setting.block, setting.rope, setting.x, targets, at::kCPU);
  ProgressiveRoundingOptions options = Fast();
  options.steps_per_stage = 2;
  for (const int64_t held_out : {5, 6}) {
    options.held_out = held_out;
    TrainedBlock trained = setting.Fresh();
    Quiet progress;
    ProgressiveRounding run(0, objective, options, progress);
    if (held_out == 5) {
      EXPECT_THROW(run.Run(trained, nullptr), EngineError);
    } else {
      EXPECT_EQ(run.Run(trained, nullptr).retries, 0);
      EXPECT_TRUE(std::isfinite(progress.last.at("loss_hard")));
    }
  }
  const TrainableTensors nearest = setting.Nearest();
  EXPECT_TRUE(std::isfinite(objective.Loss(nearest, 0, 18)));
  EXPECT_FALSE(std::isfinite(objective.Loss(nearest, 17, 19)));
}

TEST(ProgressiveRoundingTest, ResumedAfterTheLastStageItReportsTheSame) {
  const Setting setting;
  const ProgressiveRoundingOptions options = Fast();
  const auto stages = static_cast<int>(options.schedule.size());
  Quiet progress;
  TrainedBlock whole = setting.Fresh();
  const RoundingReport wanted =
      ProgressiveRounding(0, *setting.objective, options, progress).Run(whole, nullptr);
  test::StoppingStore memory;
  memory.stop_after = stages;
  TrainedBlock part = setting.Fresh();
  EXPECT_THROW(ProgressiveRounding(0, *setting.objective, options, progress).Run(part, &memory),
               EngineError);
  memory.state->retries = 2;  // of the stages before
  TrainedBlock rest = setting.Fresh();
  const RoundingReport report =
      ProgressiveRounding(0, *setting.objective, options, progress).Run(rest, &memory);
  EXPECT_GT(wanted.loss_soft, 0);
  EXPECT_EQ(report.loss_soft, wanted.loss_soft);
  EXPECT_EQ(report.retries, 2);
}

// Every tensor of a block, by name.
std::vector<std::pair<std::string, at::Tensor>> TensorsOf(const Block& block) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const Linear& linear : block.linears) {
    tensors.emplace_back(linear.name, linear.weight);
    if (linear.bias.defined()) tensors.emplace_back(linear.name + ".bias", linear.bias);
  }
  for (const Norm& norm : block.norms) {
    tensors.emplace_back(norm.name, norm.weight);
    if (norm.bias.defined()) tensors.emplace_back(norm.name + ".bias", norm.bias);
  }
  return tensors;
}

TEST(ProgressiveRoundingTest, T26_OnlyWhatIsTrainedChanges) {
  for (const char* architecture : {"llama", "qwen2", "opt"}) {
    const Setting setting(architecture);
    std::vector<at::Tensor> before;
    for (const auto& [name, tensor] : TensorsOf(setting.block)) before.push_back(tensor.clone());
    ProgressiveRoundingOptions options = Fast();
    options.schedule = {0.5};
    TrainedBlock trained = setting.Fresh();
    Quiet progress;
    ProgressiveRounding(0, *setting.objective, options, progress).Run(trained, nullptr);
    size_t i = 0;
    for (const auto& [name, tensor] : TensorsOf(setting.block)) {
      EXPECT_TRUE(tensor.equal(before[i++])) << name;
      EXPECT_FALSE(tensor.requires_grad()) << name;
      EXPECT_FALSE(tensor.grad().defined()) << name;
    }
    const auto found = setting.objective->Gradients({0, 1}, Setting::TensorsOf(trained));
    EXPECT_TRUE(found.dense_gradients.empty());
    EXPECT_EQ(found.weight_gradients.size(), trained.linears.size());
  }
}

// Rounding an input has the identity as its gradient, so training reaches the
// linears before it; 16 bits are the plain path, gradient by gradient.
TEST(ProgressiveRoundingTest, T27_TrainsThroughQuantizedActivations) {
  const Setting setting;
  const auto gradients = [&](int bits) {
    Block block = setting.block;
    block.activations.bits = bits;
    const BlockObjective objective(block, setting.rope, setting.x, setting.y, at::kCPU);
    return objective.Gradients({0, 1, 2, 3}, setting.Nearest()).weight_gradients;
  };
  const std::vector<at::Tensor> plain =
      setting.objective->Gradients({0, 1, 2, 3}, setting.Nearest()).weight_gradients;
  const std::vector<at::Tensor> sixteen = gradients(16);
  const std::vector<at::Tensor> eight = gradients(8);
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_TRUE(sixteen[i].equal(plain[i])) << i;
    EXPECT_FALSE(eight[i].equal(plain[i])) << i;
    EXPECT_LT((eight[i] - plain[i]).norm().item<double>(), 0.2 * plain[i].norm().item<double>())
        << i;
  }
}

TEST(ProgressiveRoundingTest, WithoutScaleTuningTheScalesStay) {
  const Setting setting;
  double losses[2] = {};
  for (const bool tune : {false, true}) {
    ProgressiveRoundingOptions options = Fast();
    options.rates.tune_scale = tune;
    TrainedBlock trained = setting.Fresh();
    Quiet progress;
    ProgressiveRounding(0, *setting.objective, options, progress).Run(trained, nullptr);
    for (const SoftRounding& linear : trained.linears) {
      EXPECT_EQ(linear.factors().eq(1).all().item<bool>(), !tune);
    }
    losses[tune ? 1 : 0] = setting.LossOf(trained);
  }
  EXPECT_LT(losses[1], 0.9 * losses[0]) << "scales are worth their training";
}

TEST(ProgressiveRoundingTest, ALossThatIsNotFiniteNamesBlockAndStage) {
  Setting setting;
  setting.y[0][0][0] = std::numeric_limits<float>::infinity();
  const BlockObjective objective(setting.block, setting.rope, setting.x.slice(0, 0, 4),
                                 setting.y.slice(0, 0, 4), at::kCPU);
  TrainedBlock trained = setting.Fresh();
  Quiet progress;
  try {
    ProgressiveRounding(5, objective, Fast(), progress).Run(trained, nullptr);
    FAIL() << "the loss is infinite";
  } catch (const EngineError& error) {
    EXPECT_EQ(error.reason, "NON_FINITE_LOSS");
    EXPECT_EQ(error.metadata.at("block"), "5");
  }
}

// Looks at what a step holds, after every one.
class StateCounter : public Quiet {
 public:
  explicit StateCounter(const TrainedBlock& trained) : trained_(trained) {}

  void Measure(const std::map<std::string, double>& figures) override {
    Quiet::Measure(figures);
    if (figures.count("stage_step") == 0) return;
    int64_t bytes = 0;
    for (const SoftRounding& linear : trained_.linears) {
      const at::Tensor logits = linear.logits(), scale_logits = linear.scale_logits();
      bytes += linear.bytes() + static_cast<int64_t>(logits.nbytes() + scale_logits.nbytes());
    }
    seen.insert(bytes);
  }
  std::set<int64_t> seen;

 private:
  const TrainedBlock& trained_;
};

// Spec: tesseraq.md 6.3. What a quote counts (Tesseraq::WorkingBytes) is what
// training holds, neither more nor less, in every step of every stage.
TEST(ProgressiveRoundingTest, StateIsAsLargeAsAQuoteSays) {
  const Setting setting;
  for (const GridSpec& grid : {kTwoBits, GridSpec{2, 16, false}, GridSpec{4, 8, true}}) {
    TrainedBlock trained = setting.Fresh(1, grid);
    int64_t weights = 0, groups = 0;
    for (const SoftRounding& linear : trained.linears) {
      weights += linear.rows() * linear.columns();
      groups += linear.scale_logits().numel();
    }
    ProgressiveRoundingOptions options = Fast();
    options.steps_per_stage = 1;
    StateCounter counter(trained);
    ProgressiveRounding(0, *setting.objective, options, counter).Run(trained, nullptr);
    const int64_t wanted = ProgressiveRounding::StateBytes(weights, groups);
    EXPECT_EQ(counter.seen, std::set<int64_t>{wanted}) << grid.group_size;
    EXPECT_LE(wanted, 32 * weights + 28 * groups);
    int64_t gradients = 0;  // of one share of a step
    for (const at::Tensor& gradient :
         setting.objective->Gradients({0}, Setting::TensorsOf(trained)).weight_gradients) {
      gradients += static_cast<int64_t>(gradient.nbytes());
    }
    EXPECT_EQ(gradients, 4 * weights);
  }
}

// Puts a NaN into what is trained after the last step of a stage, which no loss
// of that stage sees.
class NanAfterStage : public Quiet {
 public:
  enum class In { kLogit, kScaleLogit, kDense };

  NanAfterStage(TrainedBlock& trained, In where, int stage, int times)
      : trained_(trained), where_(where), stage_(stage), left_(times) {}

  void Measure(const std::map<std::string, double>& figures) override {
    Quiet::Measure(figures);
    const auto step = figures.find("stage_step");
    if (step == figures.end() || step->second != last.at("stage_steps")) return;
    if (last.at("stage") != stage_ || left_ == 0) return;
    --left_;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    SoftRounding& linear = trained_.linears.at(3);
    const at::Tensor logits = linear.logits();
    const at::Tensor scale_logits = linear.scale_logits();
    if (where_ == In::kLogit) {
      const int64_t live = at::isfinite(logits).view(-1).nonzero()[0].item<int64_t>();
      logits.view(-1)[live].fill_(nan);
    }
    if (where_ == In::kScaleLogit) scale_logits[1].fill_(nan);
    linear.Restore(logits, scale_logits);
    if (where_ == In::kDense) trained_.dense.at(0)[2].fill_(nan);
  }

 private:
  TrainedBlock& trained_;
  In where_;
  int stage_;
  int left_;
};

TEST(ProgressiveRoundingTest, AStageAboveMostLossIsRepeatedAtHalfTheRates) {
  const Setting setting;
  const auto run = [&](double most_loss, RoundingReport& report) {
    ProgressiveRoundingOptions options = Fast();
    options.most_loss = most_loss;
    Quiet progress;
    TrainedBlock trained = setting.Fresh();
    report = ProgressiveRounding(0, *setting.objective, options, progress).Run(trained, nullptr);
    const int64_t steps = ProgressiveRounding::Steps(options);
    EXPECT_EQ(progress.steps, steps);
    // Nobody waits in silence for a stage that is repeated.
    EXPECT_EQ(progress.advances, steps + report.retries * options.steps_per_stage);
    return trained.linears[0].weight();
  };
  RoundingReport unguarded, guarded, repeated;
  const at::Tensor weight = run(std::numeric_limits<double>::infinity(), unguarded);
  EXPECT_TRUE(run(setting.NearestLoss(), guarded).equal(weight));
  EXPECT_EQ(guarded.retries, 0);
  // No stage reaches 0: the first is repeated three times, the next two, and then it is enough.
  run(0, repeated);
  EXPECT_EQ(repeated.retries, 5);
  // Half the rates three times, in a block of that stage alone: an eighth of them at once. It
  // starts from stored logits, which give W but for its last bits.
  const auto first_stage = [&](double most_loss, double share, int retries) {
    ProgressiveRoundingOptions options = Fast();
    options.schedule = {options.schedule.back()};  // no finer stage follows
    options.most_loss = most_loss;
    options.rates.rounding *= share;
    options.rates.scale *= share;
    Quiet progress;
    TrainedBlock trained = setting.Fresh();
    EXPECT_EQ(
        ProgressiveRounding(0, *setting.objective, options, progress).Run(trained, nullptr).retries,
        retries);
    return trained.linears[0].weight();
  };
  const at::Tensor at_once = first_stage(std::numeric_limits<double>::infinity(), 0.125, 0);
  const at::Tensor same = first_stage(0, 1, 3).sub(at_once).abs().lt(1e-3);
  EXPECT_GT(same.to(at::kFloat).mean().item<double>(), 0.98);
  // Only a late stage is above this one, and the block goes on from before it.
  const double late = 0.99 * unguarded.stage_losses.back();
  EXPECT_FALSE(run(late, guarded).equal(weight));
  EXPECT_GE(guarded.retries, 1);
  EXPECT_EQ(guarded.stage_losses.front(), unguarded.stage_losses.front());
}

// Makes a norm ten times as large, once, after the first step of the third stage.
class LeapInThirdStage : public Quiet {
 public:
  explicit LeapInThirdStage(TrainedBlock& trained) : trained_(trained) {}

  void Measure(const std::map<std::string, double>& figures) override {
    Quiet::Measure(figures);
    const auto step = figures.find("stage_step");
    if (done_ || step == figures.end() || step->second != 1 || last.at("stage") != 3) return;
    done_ = true;
    trained_.dense.at(0).mul_(10);
  }

 private:
  TrainedBlock& trained_;
  bool done_ = false;
};

TEST(ProgressiveRoundingTest, AStageThatRisesFarAboveTheOneBeforeIsRepeated) {
  const Setting setting;
  const auto run = [&](double most_loss) {
    ProgressiveRoundingOptions options = Fast();
    options.most_loss = most_loss;
    options.dense_rate = 1e-3;
    TrainedBlock trained = setting.Fresh();
    Block copy = setting.block;
    for (const at::Tensor* tensor : DenseParameters(copy)) trained.dense.push_back(tensor->clone());
    LeapInThirdStage leap(trained);
    const RoundingReport report =
        ProgressiveRounding(0, *setting.objective, options, leap).Run(trained, nullptr);
    EXPECT_EQ(leap.steps, ProgressiveRounding::Steps(options));
    return report;
  };
  const RoundingReport unguarded = run(std::numeric_limits<double>::infinity());
  ASSERT_GT(unguarded.stage_losses.at(2), 3 * unguarded.stage_losses.at(1));
  EXPECT_EQ(unguarded.retries, 0);
  const RoundingReport guarded = run(1e30);  // no stage is above that
  EXPECT_EQ(guarded.retries, 1);
  EXPECT_LT(guarded.stage_losses.at(2), 3 * guarded.stage_losses.at(1));
}

TEST(ProgressiveRoundingTest, WhereDecidingTheRestCostsMuchFinerStagesFollow) {
  const Setting setting;
  ProgressiveRoundingOptions options = Fast();
  options.schedule = {0.9};
  const auto run = [&](double most_loss, StageStore* store, RoundingReport* report) {
    options.most_loss = most_loss;
    Quiet progress;
    TrainedBlock trained = setting.Fresh();
    const RoundingReport told =
        ProgressiveRounding(0, *setting.objective, options, progress).Run(trained, store);
    EXPECT_EQ(progress.steps, ProgressiveRounding::Steps(options));
    if (report != nullptr) *report = told;
    return trained;
  };
  RoundingReport unguarded, guarded;
  const TrainedBlock at_once = run(std::numeric_limits<double>::infinity(), nullptr, &unguarded);
  EXPECT_EQ(unguarded.stage_losses.size(), 1U);
  const TrainedBlock finer = run(1e30, nullptr, &guarded);
  ASSERT_GT(guarded.stage_losses.size(), 2U);
  EXPECT_LT(setting.LossOf(finer), 0.8 * setting.LossOf(at_once));
  // Killed in the middle of them.
  test::StoppingStore store;
  store.stop_after = 2;
  TrainedBlock stopped = setting.Fresh();
  Quiet progress;
  EXPECT_THROW(ProgressiveRounding(0, *setting.objective, options, progress).Run(stopped, &store),
               EngineError);
  store.stop_after = -1;
  const TrainedBlock resumed = run(1e30, &store, nullptr);
  for (size_t i = 0; i < finer.linears.size(); ++i) {
    EXPECT_TRUE(resumed.linears[i].weight().equal(finer.linears[i].weight())) << i;
  }
}

TEST(ProgressiveRoundingTest, ALastStepThatBreaksDownIsAFailedAttempt) {
  using In = NanAfterStage::In;
  const Setting setting;
  ProgressiveRoundingOptions options = Fast();
  options.schedule = {0.5, 0.1};
  options.steps_per_stage = 2;
  options.dense_rate = 0.001;
  const auto fresh = [&] {
    TrainedBlock trained = setting.Fresh();
    Block copy = setting.block;
    for (const at::Tensor* tensor : DenseParameters(copy)) trained.dense.push_back(tensor->clone());
    return trained;
  };
  for (const In where : {In::kLogit, In::kScaleLogit, In::kDense}) {
    for (const int stage : {1, 2}) {
      TrainedBlock trained = fresh();
      NanAfterStage once(trained, where, stage, 1);
      const RoundingReport report =
          ProgressiveRounding(0, *setting.objective, options, once).Run(trained, nullptr);
      EXPECT_EQ(report.retries, 1) << stage;
      EXPECT_EQ(once.steps, ProgressiveRounding::Steps(options));
      EXPECT_TRUE(std::isfinite(setting.LossOf(trained))) << stage;
    }
    TrainedBlock trained = fresh();
    NanAfterStage always(trained, where, 2, -1);
    EXPECT_THROW(ProgressiveRounding(0, *setting.objective, options, always).Run(trained, nullptr),
                 EngineError);
  }
}

}  // namespace
}  // namespace quantry::engine
