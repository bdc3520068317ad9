#include "worker/engine/reconstruct/model_tuning.h"

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>
#include <tuple>

#include "worker/engine/methods/block_weights.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/quant/grid.h"
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

// A random model with every block rounded to nearest at 3 bits.
class ModelTuningTest : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  void SetUp() override {
    QUANTRY_TAKE_DEVICE(device_, std::get<1>(GetParam()));
    test::MakeTinyModel(std::get<0>(GetParam())).Write(dir_.path());
    checkpoint_ = Checkpoint::Open(dir_.path());
    const RopeTable host = MakeRopeTable(checkpoint_->architecture(), checkpoint_->config(), 12);
    rope_ = host.To(device_);
    at::manual_seed(3);
    windows_ = at::randint(0, checkpoint_->config().vocab_size, {16, 12}, at::kLong);
    outputs_ = Embed(*checkpoint_, windows_);
    for (int b = 0; b < checkpoint_->config().num_layers; ++b) {
      const Block block = LoadBlock(*checkpoint_, b);
      outputs_ = block.Forward(outputs_, host);
      QuantizedBlock quantized;
      quantized.index = b;
      for (const Linear& linear : block.linears) {
        quantized.linears.push_back(
            QuantizeNearest(linear.name, linear.weight, linear.bias, {3, -1, false}, at::kHalf));
      }
      quantized.dense = DenseTensors(block, {});
      blocks_.push_back(std::move(quantized));
    }
  }

  ModelTuningReport Tune(const ModelTuningOptions& options, std::vector<QuantizedBlock>& blocks,
                         TrainingStore* store = nullptr) {
    const ModelTuningTask task{*checkpoint_, rope_, windows_, outputs_, device_, {}, [](int) {
                                 return std::map<std::string, at::ScalarType>();
                               }};
    return TuneModel(task, options, store, blocks, progress_);
  }

  at::Device device_ = at::kCPU;
  test::TempDir dir_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  RopeTable rope_;
  at::Tensor windows_, outputs_;
  std::vector<QuantizedBlock> blocks_;
  test::CountingSink progress_;
};

TEST_P(ModelTuningTest, LowersTheDivergenceAndKeepsTheIntegers) {
  ModelTuningOptions options;
  options.steps = 60;
  options.scale_rate = 0.01;
  options.dense_rate = 0.001;
  std::vector<QuantizedBlock> tuned = blocks_;
  const ModelTuningReport report = Tune(options, tuned);
  EXPECT_EQ(progress_.steps(), 60 * PassSteps(std::ssize(tuned)));
  EXPECT_LT(report.last_loss, 0.8 * report.first_loss);
  for (size_t b = 0; b < tuned.size(); ++b) {
    for (size_t i = 0; i < tuned[b].linears.size(); ++i) {
      const QuantizedLinear &before = blocks_[b].linears[i], &after = tuned[b].linears[i];
      EXPECT_TRUE(after.codes.equal(before.codes));
      EXPECT_TRUE(after.zeros.equal(before.zeros));
      EXPECT_TRUE((after.scales > 0).all().item<bool>());
      EXPECT_TRUE(after.scales.to(at::kHalf).to(at::kFloat).equal(after.scales));
    }
  }
}

TEST_P(ModelTuningTest, SameSeedSameBytes) {
  ModelTuningOptions options;
  options.steps = 5;
  std::vector<QuantizedBlock> one = blocks_, two = blocks_;
  Tune(options, one);
  Tune(options, two);
  EXPECT_TRUE(one[0].linears[0].scales.equal(two[0].linears[0].scales));
  EXPECT_FALSE(one[0].linears[0].scales.equal(blocks_[0].linears[0].scales));
}

// The loss is that before a step: what the last one did is looked at as well.
TEST_P(ModelTuningTest, ALastStepThatIsNotFiniteBeginsAgainAtATenthOfTheRates) {
  ModelTuningOptions options;
  options.steps = 3;
  test::OneState store(2);
  std::vector<QuantizedBlock> once = blocks_, again = blocks_, slow = blocks_;
  EXPECT_EQ(Tune(options, once, &store).retries, 0);
  store.kept().moments[0].fill_(NAN);
  const int64_t before = progress_.steps();
  EXPECT_EQ(Tune(options, again, &store).retries, 1);
  EXPECT_EQ(progress_.steps(), before + 3 * PassSteps(std::ssize(blocks_)));
  options.scale_rate /= 10;
  Tune(options, slow);
  const at::Tensor scales = again[0].linears[0].scales;
  EXPECT_TRUE(scales.equal(slow[0].linears[0].scales));
  EXPECT_FALSE(scales.equal(once[0].linears[0].scales));
}

TEST_P(ModelTuningTest, WhatStaysNotFiniteIsAnError) {
  ModelTuningOptions options;
  options.steps = 3;
  options.scale_rate = std::numeric_limits<double>::infinity();
  std::vector<QuantizedBlock> blocks = blocks_;
  const EngineError error = test::ErrorOf([&] { Tune(options, blocks); });
  EXPECT_EQ(error.reason, "NON_FINITE_LOSS");
  EXPECT_TRUE(test::Mentions(error, "tuning the whole model, step 0: ")) << error.what();
  EXPECT_TRUE(test::Mentions(error, "also at a hundredth of the learning rates")) << error.what();
}

TEST_P(ModelTuningTest, GoesOnFromAKeptStateToTheSameBytes) {
  ModelTuningOptions options;
  options.steps = 7;
  options.dense_rate = 3e-3;
  std::vector<QuantizedBlock> whole = blocks_, resumed = blocks_;
  test::OneState store(3);
  const ModelTuningReport report = Tune(options, whole, &store);
  const ModelTuningReport again = Tune(options, resumed, &store);
  EXPECT_EQ(again.first_loss, report.first_loss);
  EXPECT_EQ(again.last_loss, report.last_loss);
  for (size_t b = 0; b < whole.size(); ++b) {
    for (size_t i = 0; i < whole[b].linears.size(); ++i) {
      EXPECT_TRUE(whole[b].linears[i].scales.equal(resumed[b].linears[i].scales));
    }
    for (const auto& [name, tensor] : whole[b].dense) {
      EXPECT_TRUE(tensor.equal(resumed[b].dense.at(name))) << name;
    }
  }
}

// A block of its own for every share that runs beside the first.
TEST_P(ModelTuningTest, BytesCountEveryShare) {
  ModelTuningOptions options;
  options.batch_size = 4;
  const auto bytes = [&](int count, const at::Device& device) {
    const test::Threads threads(count);
    return TuningBytes(options, *checkpoint_, -1, 12, device);
  };
  const int64_t one = bytes(1, at::kCPU), two = bytes(2, at::kCPU);
  int64_t weights = 0;
  for (const QuantizedLinear& linear : blocks_[0].linears) weights += linear.codes.numel();
  EXPECT_GE(two - one, 3 * 4 * weights);
  EXPECT_EQ(bytes(3, at::kCPU), one);  // four windows in one share
  const auto layers = static_cast<int64_t>(blocks_.size());
  EXPECT_LE(bytes(4, at::kCUDA), one - layers * weights);  // at once; the host holds the integers
  options.compute = ComputeDtype::kBfloat16;
  int64_t largest = 0;
  for (const QuantizedLinear& linear : blocks_[0].linears) {
    largest = std::max(largest, linear.codes.numel());
  }
  EXPECT_EQ(bytes(1, at::kCPU) - one, 6 * largest);
  options.compute = std::nullopt;
  EXPECT_EQ(bytes(1, at::kCPU) - one, 6 * largest);
}

TEST_P(ModelTuningTest, ARateOfZeroLeavesNormsAlone) {
  ModelTuningOptions options;
  options.steps = 3;
  std::vector<QuantizedBlock> tuned = blocks_;
  Tune(options, tuned);
  for (const auto& [name, value] : blocks_[0].dense) {
    EXPECT_TRUE(tuned[0].dense.at(name).equal(value)) << name;
  }
}

TEST_P(ModelTuningTest, AScaleRateOfZeroLeavesScalesAlone) {
  ModelTuningOptions options;
  options.steps = 3;
  options.scale_rate = 0;
  options.dense_rate = 0.01;
  std::vector<QuantizedBlock> tuned = blocks_;
  Tune(options, tuned);
  for (size_t i = 0; i < blocks_[0].linears.size(); ++i) {
    EXPECT_TRUE(tuned[0].linears[i].scales.equal(blocks_[0].linears[i].scales)) << i;
  }
  const auto& [name, value] = *blocks_[0].dense.begin();
  EXPECT_FALSE(tuned[0].dense.at(name).equal(value)) << name;
}

INSTANTIATE_TEST_SUITE_P(Architectures, ModelTuningTest,
                         ::testing::Combine(::testing::Values("llama", "qwen3", "opt"),
                                            test::kDevices),
                         [](const auto& of) {
                           return std::string(std::get<0>(of.param)) + "_" + std::get<1>(of.param);
                         });

}  // namespace
}  // namespace quantry::engine
