#include "worker/engine/evaluation/evaluator.h"

#include <gtest/gtest.h>

#include <cmath>

#include "worker/engine/calibration/dataset.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/testing/devices.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

using test::ErrorOf;
using test::MakeTinyModel;

// Blocks with every linear rounded coarsely: a stand-in for a quantized chain.
BlockProvider Rounded(const std::shared_ptr<const Checkpoint>& checkpoint,
                      const at::Device& device = at::kCPU) {
  return [checkpoint, device](int index) {
    Block block = LoadBlock(*checkpoint, index, device);
    for (Linear& linear : block.linears) linear.weight = (linear.weight * 8).round() / 8;
    return block;
  };
}

at::Tensor WholeLogits(const Checkpoint& checkpoint, const at::Tensor& ids,
                       const BlockProvider& blocks) {
  const RopeTable rope = MakeRopeTable(checkpoint.architecture(), checkpoint.config(), ids.size(1));
  at::Tensor hidden = Embed(checkpoint, ids);
  for (int i = 0; i < checkpoint.config().num_layers; ++i) {
    hidden = blocks(i).Forward(hidden, rope);
  }
  const OutputHead head(checkpoint);
  return at::matmul(head.Normalize(hidden), head.Rows(0, head.vocab_size()).t()).to(at::kDouble);
}

// The same figures from whole logits, by their definitions.
EvaluationResult Reference(const Checkpoint& checkpoint, const at::Tensor& ids,
                           const BlockProvider& dense, const BlockProvider& quantized) {
  const int64_t n = ids.size(1) - 1;
  const at::Tensor p = WholeLogits(checkpoint, ids, dense).narrow(1, 0, n).log_softmax(-1);
  const at::Tensor q = WholeLogits(checkpoint, ids, quantized).narrow(1, 0, n).log_softmax(-1);
  const at::Tensor next = ids.narrow(1, 1, n).unsqueeze(-1);
  EvaluationResult result;
  result.perplexity_dense = std::exp(-p.gather(-1, next).mean().item<double>());
  result.perplexity_quantized = std::exp(-q.gather(-1, next).mean().item<double>());
  result.kl_divergence = (p.exp() * (p - q)).sum(-1).mean().item<double>();
  result.top1_agreement = p.argmax(-1).eq(q.argmax(-1)).to(at::kDouble).mean().item<double>();
  return result;
}

class EvaluatorTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    MakeTinyModel(GetParam()).Write(dir_.path());
    checkpoint_ = Checkpoint::Open(dir_.path());
    windows_ = (at::arange(7 * 12, at::kLong) * 17 % 50).view({7, 12});
  }

  test::TempDir dir_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  at::Tensor windows_;
};

INSTANTIATE_TEST_SUITE_P(All, EvaluatorTest, ::testing::Values("llama", "qwen3", "opt"),
                         [](const auto& name) { return std::string(name.param); });

TEST_P(EvaluatorTest, AgreesWithWholeLogits) {
  const auto dense = [&](int i) { return LoadBlock(*checkpoint_, i); };
  const EvaluationResult wanted = Reference(*checkpoint_, windows_, dense, Rounded(checkpoint_));
  EXPECT_GT(wanted.kl_divergence, 1e-4) << "a test that says nothing";
  EXPECT_LT(wanted.top1_agreement, 1.0);
  for (const at::Device& device : test::kAvailable) {
    const EvaluationResult got =
        Evaluate(*checkpoint_, windows_, Rounded(checkpoint_, device), {.device = device});
    EXPECT_NEAR(got.perplexity_dense, wanted.perplexity_dense, 1e-4 * wanted.perplexity_dense);
    EXPECT_NEAR(got.perplexity_quantized, wanted.perplexity_quantized,
                1e-4 * wanted.perplexity_quantized);
    EXPECT_NEAR(got.kl_divergence, wanted.kl_divergence, 1e-4 * wanted.kl_divergence + 1e-7);
    EXPECT_NEAR(got.top1_agreement, wanted.top1_agreement, 1e-12);
    EXPECT_EQ(got.windows, 7);
    EXPECT_EQ(got.tokens, 7 * 11);
  }
}

TEST_P(EvaluatorTest, TheSameChainIsTheSame) {
  const EvaluationResult result =
      Evaluate(*checkpoint_, windows_, [&](int i) { return LoadBlock(*checkpoint_, i); });
  EXPECT_EQ(result.perplexity_dense, result.perplexity_quantized);
  EXPECT_NEAR(result.kl_divergence, 0.0, 1e-12);
  EXPECT_EQ(result.top1_agreement, 1.0);
}

TEST_P(EvaluatorTest, ChunksDoNotChangeTheResult) {
  const EvaluationResult whole = Evaluate(*checkpoint_, windows_, Rounded(checkpoint_));
  for (const int64_t bytes : {int64_t{1}, int64_t{2 * 12 * 32 * 4 * 3}}) {
    const EvaluationOptions options = {.max_stream_bytes = bytes};
    const int64_t chunks = bytes == 1 ? 7 : 3;
    const int64_t steps = EvaluationSteps(*checkpoint_, 7, 12, true, options);
    EXPECT_EQ(steps, chunks * 3);
    std::vector<int64_t> seen;
    const EvaluationResult part = Evaluate(*checkpoint_, windows_, Rounded(checkpoint_), options,
                                           [&](int64_t done, int64_t total) {
                                             EXPECT_EQ(total, steps);
                                             seen.push_back(done);
                                           });
    ASSERT_EQ(static_cast<int64_t>(seen.size()), steps);
    EXPECT_EQ(seen.back(), steps);
    EXPECT_NEAR(part.perplexity_dense, whole.perplexity_dense, 1e-6 * whole.perplexity_dense);
    EXPECT_NEAR(part.kl_divergence, whole.kl_divergence, 1e-6 * whole.kl_divergence);
  }
}

TEST_P(EvaluatorTest, DenseAloneLeavesTheRestAtZero) {
  const EvaluationResult result = Evaluate(*checkpoint_, windows_, {});
  EXPECT_GT(result.perplexity_dense, 1.0);
  EXPECT_EQ(result.perplexity_quantized, 0.0);
}

TEST_P(EvaluatorTest, AChainThatIsNotFiniteAgreesWithNothing) {
  const auto broken = [this](int index) {
    Block block = LoadBlock(*checkpoint_, index);
    for (Linear& linear : block.linears) linear.weight = linear.weight * std::nan("");
    return block;
  };
  const EvaluationResult result = Evaluate(*checkpoint_, windows_, broken);
  EXPECT_TRUE(std::isfinite(result.perplexity_dense));
  EXPECT_FALSE(std::isfinite(result.perplexity_quantized));
  EXPECT_FALSE(std::isfinite(result.kl_divergence));
  EXPECT_FALSE(std::isfinite(result.top1_agreement));
}

TEST(EvaluateTest, RefusesSequencesTheModelCannotTake) {
  test::TempDir dir;
  MakeTinyModel("opt", {{"max_position_embeddings", 8}}).Write(dir.path());
  const auto checkpoint = Checkpoint::Open(dir.path());
  const at::Tensor windows = at::zeros({1, 9}, at::kLong);
  EXPECT_EQ(ErrorOf([&] { Evaluate(*checkpoint, windows, {}); }).reason, "INVALID_SPEC");
}

// The protocol on the example model: perplexity of shared measurements.
TEST(EvaluateTest, ExampleModelHasItsKnownPerplexity) {
  const std::string model = QUANTRY_SOURCE_DIR "/examples/stories260k";
  const auto checkpoint = Checkpoint::Open(model);
  const auto tokenizer = Tokenizer::Load(model + "/tokenizer.json");
  const TextSource source{QUANTRY_SOURCE_DIR "/examples/text/evaluation.txt"};
  const auto tokens = ReadTokens(source, tokenizer.get(), checkpoint->config().vocab_size);
  ASSERT_EQ(tokens.size(), 193'791u);
  const at::Tensor windows = CutWindows(tokens, {.windows = 0, .length = 256}, source);
  EXPECT_NEAR(Evaluate(*checkpoint, windows, {}).perplexity_dense, 4.478231, 1e-5);
}

}  // namespace
}  // namespace quantry::engine
