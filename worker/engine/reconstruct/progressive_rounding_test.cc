#include "worker/engine/reconstruct/progressive_rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "worker/engine/base/error.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/reconstruct/rounding_schedule.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

const GridSpec kTwoBits = {2, -1, false};

class Quiet : public ProgressSink {
 public:
  void Advance(int64_t count, std::string_view) override { steps += count; }
  void Measure(const std::map<std::string, double>& figures) override { last = figures; }
  int64_t steps = 0;
  std::map<std::string, double> last;
};

// A random block, its inputs and its full-precision outputs.
struct Setting {
  explicit Setting(const std::string& architecture = "llama", int64_t windows = 24,
                   const nlohmann::json& changes = nlohmann::json::object()) {
    test::MakeTinyModel(architecture, changes).Write(dir.path());
    checkpoint = Checkpoint::Open(dir.path());
    block = LoadBlock(*checkpoint, 0);
    rope = MakeRopeTable(checkpoint->architecture(), checkpoint->config(), 16);
    at::manual_seed(7);
    x = at::randn({windows, 16, checkpoint->config().hidden_size});
    y = block.Forward(x, rope);
    objective = std::make_unique<BlockObjective>(block, rope, x, y, at::kCPU);
  }

  TrainedBlock Fresh(const GridSpec& grid = kTwoBits) const {
    TrainedBlock trained;
    for (const Linear& linear : block.linears) {
      trained.linears.emplace_back(linear.weight, MinMaxGrid(linear.weight, grid, at::kHalf), grid,
                                   ScaleCurve::kRectifiedSigmoid);
    }
    return trained;
  }

  double LossOf(const TrainedBlock& trained) const {
    TrainableTensors at;
    for (const SoftRounding& linear : trained.linears) at.weights.push_back(linear.weight());
    at.dense = trained.dense;
    return objective->Loss(at);
  }

  double NearestLoss() const {
    TrainableTensors at;
    for (const Linear& linear : block.linears) {
      at.weights.push_back(FakeQuantize(linear.weight, kTwoBits, at::kHalf));
    }
    return objective->Loss(at);
  }

  test::TempDir dir;
  std::shared_ptr<const Checkpoint> checkpoint;
  Block block;
  RopeTable rope;
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

class ArchitectureTest : public ::testing::TestWithParam<const char*> {};

TEST_P(ArchitectureTest, GradientsMatchFiniteDifferences) {
  // A smooth activation for OPT too: finite differences stumble over ReLU.
  const bool opt = std::string(GetParam()) == "opt";
  const Setting setting(
      GetParam(), 4,
      opt ? nlohmann::json{{"activation_function", "gelu"}} : nlohmann::json::object());
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

INSTANTIATE_TEST_SUITE_P(All, ArchitectureTest,
                         ::testing::Values("llama", "qwen2", "qwen3", "opt"));

TEST(ProgressiveRoundingTest, T12_T13_T19_TrainingBeatsRounding) {
  const Setting setting;
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
  EXPECT_LT(report.stage_losses.front(), report.stage_losses.back());
  EXPECT_LT(final, 0.6 * nearest);
  EXPECT_LT(final, 1.25 * report.loss_soft);
  EXPECT_EQ(progress.last.at("stage"), 20);
  EXPECT_NEAR(progress.last.at("hard_fraction"), 0.995, 2e-3);
  // The block rebuilt from integers and stored scales.
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
  EXPECT_GT(setting.LossOf(at_once), 1.5 * setting.LossOf(progressive));
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

// Remembers stages; stops the run by throwing after one of them.
class Memory : public StageStore {
 public:
  std::optional<StageState> Load(int) override { return state; }
  void Save(int, const StageState& now) override {
    state = now;
    if (now.stages_done == stop_after) throw EngineError(FailureClass::kBug, "STOP", "stop");
  }
  std::optional<StageState> state;
  int stop_after = -1;
};

TEST(ProgressiveRoundingTest, ResumesInsideABlockWithTheSameBytes) {
  const Setting setting;
  ProgressiveRoundingOptions options = Fast();
  options.steps_per_stage = 4;
  options.dense_rate = 0.001;
  options.final_steps = 5;
  const auto fresh = [&] {
    TrainedBlock trained = setting.Fresh();
    Block copy = setting.block;
    for (const at::Tensor* tensor : DenseParameters(copy)) trained.dense.push_back(tensor->clone());
    return trained;
  };
  Quiet progress;
  TrainedBlock whole = fresh();
  ProgressiveRounding(0, *setting.objective, options, progress).Run(whole, nullptr);
  Memory memory;
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

TEST(ProgressiveRoundingTest, T26_OnlyWhatIsTrainedChanges) {
  const Setting setting;
  const at::Tensor norm = setting.block.norms[0].weight.clone();
  const at::Tensor weight = setting.block.linears[0].weight.clone();
  ProgressiveRoundingOptions options = Fast();
  options.schedule = {0.5};
  TrainedBlock trained = setting.Fresh();
  Quiet progress;
  ProgressiveRounding(0, *setting.objective, options, progress).Run(trained, nullptr);
  EXPECT_TRUE(setting.block.norms[0].weight.equal(norm));
  EXPECT_TRUE(setting.block.linears[0].weight.equal(weight));
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

}  // namespace
}  // namespace quantry::engine
