#include "worker/engine/nn/block.h"

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "worker/engine/nn/transformer.h"
#include "worker/engine/testing/devices.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

using test::ErrorOf;
using test::MakeTinyModel;
using test::Mentions;
using test::TinyModel;

struct Loaded {
  std::shared_ptr<const Checkpoint> checkpoint;
  RopeTable rope;
  at::Tensor hidden;  // [2, 9, hidden]
  Block block;
};

Loaded Load(const std::string& dir, const TinyModel& model, const at::Device& device = at::kCPU) {
  model.Write(dir);
  Loaded loaded;
  loaded.checkpoint = Checkpoint::Open(dir);
  loaded.rope =
      MakeRopeTable(loaded.checkpoint->architecture(), loaded.checkpoint->config(), 9, device);
  const at::Tensor ids = at::arange(18, at::kLong).view({2, 9});
  loaded.hidden = Embed(*loaded.checkpoint, ids, device);
  loaded.block = LoadBlock(*loaded.checkpoint, 0, device);
  return loaded;
}

class BlockTest : public ::testing::TestWithParam<const Architecture*> {
 protected:
  Loaded LoadParam() { return Load(dir_.path(), MakeTinyModel(GetParam()->name)); }
  test::TempDir dir_;
};

INSTANTIATE_TEST_SUITE_P(All, BlockTest, ::testing::ValuesIn(Architectures()),
                         [](const auto& row) { return row.param->name; });

TEST_P(BlockTest, APositionSeesOnlyThePast) {
  const Loaded m = LoadParam();
  at::Tensor changed = m.hidden.clone();
  // Not a constant: LayerNorm takes that away.
  changed.select(1, 5).add_(at::linspace(-1, 2, changed.size(2)));
  const at::Tensor before = m.block.Forward(m.hidden, m.rope);
  const at::Tensor after = m.block.Forward(changed, m.rope);
  EXPECT_TRUE(before.narrow(1, 0, 5).equal(after.narrow(1, 0, 5)));
  EXPECT_FALSE(before.select(1, 8).allclose(after.select(1, 8), 1e-3, 1e-3));
}

TEST_P(BlockTest, HooksSeeEveryLinearOnceWithItsInput) {
  const Loaded m = LoadParam();
  std::vector<int> order;
  const at::Tensor hooked = m.block.Forward(m.hidden, m.rope, [&](int i, const at::Tensor& x) {
    order.push_back(i);
    EXPECT_EQ(x.size(-1), m.block.linears[i].weight.size(1));
    EXPECT_EQ(x.dim(), 3);
    return m.block.Apply(i, x);
  });
  std::sort(order.begin(), order.end());
  std::vector<int> all(m.block.linears.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int>(i);
  EXPECT_EQ(order, all);
  EXPECT_TRUE(hooked.equal(m.block.Forward(m.hidden, m.rope)));
}

TEST_P(BlockTest, ACacheGoesOnWhereItStopped) {
  const Loaded m = LoadParam();
  const at::Tensor whole = m.block.Forward(m.hidden, m.rope);
  KeyValueCache cache = KeyValueCache::For(m.checkpoint->config(), 2, 9);
  std::vector<at::Tensor> parts;
  for (const auto& [first, count] : {std::pair(0, 5), std::pair(5, 1), std::pair(6, 3)}) {
    parts.push_back(m.block.Forward(m.hidden.narrow(1, first, count), m.rope, {}, &cache));
  }
  EXPECT_EQ(cache.length, 9);
  EXPECT_TRUE(at::cat(parts, 1).allclose(whole, 1e-5, 1e-6));
}

TEST_P(BlockTest, AProductStandsForItsWeight) {
  const Loaded m = LoadParam();
  Block other = m.block;
  other.linears.back().weight = at::Tensor();
  other.linears.back().product = [&](const at::Tensor& x) {
    return m.block.Apply(static_cast<int>(m.block.linears.size()) - 1, x);
  };
  EXPECT_TRUE(other.Forward(m.hidden, m.rope).equal(m.block.Forward(m.hidden, m.rope)));
}

TEST_P(BlockTest, PartsMakeTheWhole) {
  Loaded m = LoadParam();
  const Architecture& row = *GetParam();
  const auto norm = [&](NormRole role, const at::Tensor& x) {
    return ApplyNorm(m.block.norms[row.NormIndex(role)], row.norm_kind,
                     m.checkpoint->config().norm_eps, x);
  };
  const at::Tensor middle =
      m.hidden + m.block.Attention(norm(NormRole::kAttentionInput, m.hidden), m.rope);
  const at::Tensor whole = middle + m.block.Mlp(norm(NormRole::kMlpInput, middle));
  EXPECT_TRUE(whole.equal(m.block.Forward(m.hidden, m.rope)));
}

// T27: with 16 bits the path is the plain one; with fewer every linear, and
// nothing else, sees a quantized input.
TEST_P(BlockTest, ActivationsAreQuantizedBeforeEveryLinear) {
  const Loaded m = LoadParam();
  Block quantized = m.block;
  EXPECT_TRUE(quantized.Forward(m.hidden, m.rope).equal(m.block.Forward(m.hidden, m.rope)));
  quantized.activations.bits = 4;
  const at::Tensor got = quantized.Forward(m.hidden, m.rope);
  EXPECT_FALSE(got.equal(m.block.Forward(m.hidden, m.rope)));
  const at::Tensor wanted = m.block.Forward(m.hidden, m.rope, [&](int i, const at::Tensor& x) {
    return m.block.Apply(i, FakeQuantizeActivations(x, 4));
  });
  EXPECT_TRUE(got.equal(wanted));
}

TEST_P(BlockTest, SameBytesAgain) {
  const Loaded m = LoadParam();
  EXPECT_TRUE(m.block.Forward(m.hidden, m.rope).equal(m.block.Forward(m.hidden, m.rope)));
}

// d(sum of squares)/d(weight) of each linear against a central difference.
TEST_P(BlockTest, GradientsReachEveryLinear) {
  const at::AutoGradMode grad(true);
  const Loaded m = LoadParam();
  std::vector<at::Tensor> weights;
  for (const Linear& linear : m.block.linears) {
    weights.push_back(linear.weight.clone().requires_grad_());
  }
  const auto loss = [&](const std::vector<at::Tensor>& w) {
    return m.block
        .Forward(m.hidden, m.rope,
                 [&](int i, const at::Tensor& x) {
                   const at::Tensor y = at::matmul(x, w[i].t());
                   return m.block.linears[i].bias.defined() ? y + m.block.linears[i].bias : y;
                 })
        .to(at::kDouble)
        .square()
        .sum();
  };
  const auto gradients = torch::autograd::grad({loss(weights)}, weights);
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::NoGradGuard no_grad;
    const at::Tensor direction = gradients[i] / gradients[i].norm();
    constexpr double kStep = 1e-2;
    auto shifted = weights;
    shifted[i] = weights[i] + kStep * direction;
    const double up = loss(shifted).item<double>();
    shifted[i] = weights[i] - kStep * direction;
    const double down = loss(shifted).item<double>();
    const double slope = gradients[i].norm().item<double>();
    EXPECT_NEAR((up - down) / (2 * kStep), slope, 0.02 * slope) << m.block.linears[i].name;
  }
}

TEST_P(BlockTest, CloneIsIndependent) {
  const Loaded m = LoadParam();
  const at::Tensor before = m.block.Forward(m.hidden, m.rope);
  Block clone = m.block.Clone();
  clone.linears[0].weight.zero_();
  clone.norms[0].weight.zero_();
  EXPECT_TRUE(before.equal(m.block.Forward(m.hidden, m.rope)));
  EXPECT_EQ(m.block.LinearIndex(m.block.linears[2].name), 2);
  EXPECT_EQ(m.block.LinearIndex("absent"), -1);
  EXPECT_EQ(clone.FindNorm("absent"), nullptr);
  EXPECT_EQ(clone.FindNorm(clone.norms[0].name), &clone.norms[0]);
}

TEST_P(BlockTest, EveryDeviceGivesTheSameAnswer) {
  const Loaded cpu = LoadParam();
  const at::Tensor wanted = cpu.block.Forward(cpu.hidden, cpu.rope);
  for (const at::Device& device : test::kAvailable) {
    const Loaded m = Load(dir_.path(), MakeTinyModel(GetParam()->name), device);
    const at::Tensor got = m.block.Forward(m.hidden, m.rope).to(at::kCPU);
    EXPECT_TRUE(got.allclose(wanted, 1e-4, 1e-4)) << device;
  }
}

// Smoothing must leave the block's function alone: previous / c, columns * c.
TEST_P(BlockTest, UsableSmoothingGroupsKeepTheFunction) {
  Loaded m = LoadParam();
  const at::Tensor before = m.block.Forward(m.hidden, m.rope);
  const auto groups = UsableSmoothingGroups(*GetParam(), m.checkpoint->config());
  EXPECT_GE(groups.size(), 3u);
  Block block = m.block.Clone();
  for (const SmoothingGroup& group : groups) {
    const int64_t in = block.linears[group.linears[0]].weight.size(1);
    const at::Tensor scale = at::linspace(0.5, 2.0, in);
    for (const int i : group.linears) block.linears[i].weight.mul_(scale);
    const int previous = block.LinearIndex(group.previous);
    at::Tensor& weight = group.previous_is_norm ? block.FindNorm(group.previous)->weight
                                                : block.linears[previous].weight;
    at::Tensor& bias = group.previous_is_norm ? block.FindNorm(group.previous)->bias
                                              : block.linears[previous].bias;
    weight.div_(group.previous_is_norm ? scale : scale.unsqueeze(1));
    if (bias.defined()) bias.div_(scale);
  }
  EXPECT_TRUE(before.allclose(block.Forward(m.hidden, m.rope), 1e-4, 1e-4));
}

// Long enough for several slices of queries.
TEST(AttentionTest, SlicesAgreeWithThePlainFormula) {
  test::TempDir dir;
  const Loaded m = Load(dir.path(), MakeTinyModel("llama"));
  constexpr int64_t kTokens = 301;
  const ModelConfig& config = m.checkpoint->config();
  const RopeTable rope = MakeRopeTable(m.checkpoint->architecture(), config, kTokens);
  const at::Tensor x = at::linspace(-1, 1, 2 * kTokens * 32).sin().view({2, kTokens, 32}) * 3;
  const auto heads = [&](int i, int64_t count) {
    return m.block.Apply(i, x).view({2, kTokens, count, 8}).transpose(1, 2);
  };
  const at::Tensor q = rope.Apply(heads(0, 4));
  const at::Tensor k = rope.Apply(heads(1, 2)).repeat_interleave(2, 1);
  const at::Tensor v = heads(2, 2).repeat_interleave(2, 1);
  const at::Tensor future = at::ones({kTokens, kTokens}, at::kBool).triu(1);
  const at::Tensor weights =
      (at::matmul(q, k.transpose(2, 3)) / std::sqrt(8.0)).masked_fill(future, -1e30).softmax(-1);
  const at::Tensor mixed = at::matmul(weights, v).transpose(1, 2).reshape({2, kTokens, 32});
  EXPECT_TRUE(m.block.Attention(x, rope).allclose(m.block.Apply(3, mixed), 1e-5, 1e-5));
}

TEST(NormTest, MatchesItsFormula) {
  const at::Tensor x = at::linspace(-2, 3, 24).view({2, 3, 4});
  const Norm norm{"n", at::tensor({1.0f, 2.0f, 0.5f, -1.0f}), at::tensor({0.1f, 0.f, 0.f, 1.f})};
  const at::Tensor rms = ApplyNorm({"n", norm.weight, {}}, NormKind::kRms, 1e-3, x);
  EXPECT_TRUE(rms.allclose(x / (x.square().mean(-1, true) + 1e-3).sqrt() * norm.weight));
  const at::Tensor centred = x - x.mean(-1, true);
  const at::Tensor wanted =
      centred / (centred.square().mean(-1, true) + 1e-3).sqrt() * norm.weight + norm.bias;
  EXPECT_TRUE(ApplyNorm(norm, NormKind::kLayer, 1e-3, x).allclose(wanted, 1e-5, 1e-6));
}

TEST(TransformerTest, NaNsAreNamedWhereverTheyAre) {
  for (const char* name :
       {"model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight",
        "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}) {
    test::TempDir dir;
    TinyModel model = MakeTinyModel("llama");
    model.tensors[name] = model.tensors[name].clone();
    model.tensors[name].view(-1)[3] = std::nanf("");
    const EngineError error = ErrorOf([&] {
      const Loaded m = Load(dir.path(), model);
      OutputHead(*m.checkpoint).Logits(m.hidden.view({-1, 32}), 0, 50);
    });
    EXPECT_EQ(error.reason, "NON_FINITE_WEIGHTS") << name;
    EXPECT_TRUE(Mentions(error, name)) << error.what();
  }
}

TEST(TransformerTest, HeadInPiecesEqualsTheWhole) {
  test::TempDir dir;
  const Loaded m = Load(dir.path(), MakeTinyModel("llama", {{"tie_word_embeddings", true}}));
  const OutputHead head(*m.checkpoint);
  const at::Tensor x = head.Normalize(m.hidden).view({-1, 32});
  const at::Tensor pieces = at::cat({head.Logits(x, 0, 7), head.Logits(x, 7, 43)}, 1);
  EXPECT_TRUE(pieces.allclose(head.Logits(x, 0, 50), 1e-5, 1e-5));
}

}  // namespace
}  // namespace quantry::engine
