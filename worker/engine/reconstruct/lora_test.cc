#include "worker/engine/reconstruct/lora.h"

#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <memory>

#include "worker/engine/nn/transformer.h"
#include "worker/engine/reconstruct/model_backward.h"
#include "worker/engine/testing/counting_sink.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

// Remembers the state after one step, and hands it out afterwards.
class OneState : public LoraStore {
 public:
  explicit OneState(int64_t step) : step_(step) {}
  std::optional<LoraState> Load() override { return kept_; }
  void Save(const LoraState& state, bool) override {
    if (state.steps_done != step_ || kept_) return;
    kept_ = state;
    for (auto* list : {&kept_->adapters, &kept_->moments}) {
      for (at::Tensor& tensor : *list) tensor = tensor.clone();
    }
  }

 private:
  int64_t step_;
  std::optional<LoraState> kept_;
};

class LoraTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    test::MakeTinyModel(GetParam()).Write(dir_.path());
    checkpoint_ = Checkpoint::Open(dir_.path());
    rope_ = MakeRopeTable(checkpoint_->architecture(), checkpoint_->config(), 12);
    at::manual_seed(3);
    windows_ = at::randint(0, checkpoint_->config().vocab_size, {8, 12}, at::kLong);
    options_.steps = 40;
    options_.learning_rate = 0.02;
    options_.rank = 4;
  }

  std::vector<Block> Blocks() const {
    std::vector<Block> blocks;
    for (int b = 0; b < checkpoint_->config().num_layers; ++b) {
      blocks.push_back(LoadBlock(*checkpoint_, b));
    }
    return blocks;
  }

  LoraReport Train(std::vector<Block>& blocks, LoraStore* store = nullptr) {
    return TrainLora(*checkpoint_, rope_, windows_, at::kCPU, options_, store, blocks, progress_);
  }

  // Next-token loss of whole logits, ATen's own.
  at::Tensor Loss(const std::vector<Block>& blocks, const at::Tensor& windows) const {
    at::Tensor hidden = Embed(*checkpoint_, windows);
    for (const Block& block : blocks) hidden = block.Forward(hidden, rope_);
    const OutputHead head(*checkpoint_);
    const at::Tensor logits =
        at::matmul(head.Normalize(hidden), head.Rows(0, head.vocab_size()).t()).slice(1, 0, -1);
    return at::cross_entropy_loss(logits.reshape({-1, logits.size(-1)}),
                                  windows.slice(1, 1).reshape({-1}));
  }

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
  EXPECT_EQ(progress_.steps(), options_.steps);
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

TEST_P(LoraTest, TheFirstLossIsThatOfTheModelItself) {
  options_.steps = 1;  // B is 0
  options_.accumulation = windows_.size(0);
  std::vector<Block> blocks = Blocks();
  EXPECT_NEAR(Train(blocks).loss_first, Loss(Blocks(), windows_).item<double>(), 1e-5);
}

TEST_P(LoraTest, GoesOnFromAStateWithTheSameBits) {
  std::vector<Block> whole = Blocks();
  OneState store(17);
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

TEST_P(LoraTest, RefusesARankNoLinearHolds) {
  options_.rank = 1 << 15;
  const EngineError error = test::ErrorOf(
      [&] { CheckLora(options_, checkpoint_->architecture(), checkpoint_->config()); });
  EXPECT_EQ(error.reason, "INVALID_SPEC");
  EXPECT_TRUE(test::Mentions(error, "preprocessing.lora.rank"));
  options_.rank = 0;
  CheckLora(options_, checkpoint_->architecture(), checkpoint_->config());
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
  const OutputHead head(*checkpoint_);
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
                                                   windows_.slice(1, 1).reshape({-1}));
    loss.backward();
    slope = leaf.grad();
    return loss.item<double>();
  };
  BackwardThroughModel(Embed(*checkpoint_, windows_), blocks.size(), pass);
  EXPECT_EQ(collected, blocks.size());
  size_t next = 0;
  for (const Block& block : blocks) {
    for (const Linear& linear : block.linears) {
      EXPECT_TRUE(at::allclose(linear.weight.grad(), wanted[next++], 1e-4, 1e-7)) << linear.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, LoraTest, ::testing::Values("llama", "opt"),
                         [](const auto& model) { return std::string(model.param); });

}  // namespace
}  // namespace quantry::engine
