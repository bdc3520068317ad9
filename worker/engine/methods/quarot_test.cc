#include "worker/engine/methods/quarot/quarot.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "worker/engine/base/file.h"
#include "worker/engine/methods/awq/inputs.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/gptq/hessian.h"
#include "worker/engine/methods/quarot/rotation.h"
#include "worker/engine/methods/rtn/rtn.h"
#include "worker/engine/methods/testing/setting.h"
#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

using nlohmann::json;
using test::CountingSink;
using test::RelativeError;
using test::Setting;

struct RotationCase {
  const char* name;
  const char* architecture;
  json changes;
  bool online;
};

void PrintTo(const RotationCase& rotation, std::ostream* out) { *out << rotation.name; }

// A model and its rotated twin on disk.
struct Twins {
  Twins(const std::string& architecture, const json& changes, bool online, uint64_t seed = 5) {
    test::MakeTinyModel(architecture, changes).Write(dir.File("plain"));
    plain = Checkpoint::Open(dir.File("plain"));
    std::filesystem::create_directories(dir.File("rotated"));
    WriteRotatedCheckpoint(*plain, {true, online}, seed, dir.File("rotated"));
    rotated = Checkpoint::Open(dir.File("rotated"));
  }
  test::TempDir dir;
  std::shared_ptr<const Checkpoint> plain;
  std::shared_ptr<const Checkpoint> rotated;
};

at::Tensor Logits(const Checkpoint& checkpoint, bool drop_online = false) {
  const at::Tensor ids = at::arange(18, at::kLong).view({2, 9});
  const RopeTable rope = MakeRopeTable(checkpoint.architecture(), checkpoint.config(), 9);
  at::Tensor hidden = Embed(checkpoint, ids);
  for (int i = 0; i < checkpoint.config().num_layers; ++i) {
    Block block = LoadBlock(checkpoint, i);
    if (drop_online) block.online.reset();
    hidden = block.Forward(hidden, rope);
  }
  const OutputHead head(checkpoint);
  const at::Tensor rows = head.Normalize(hidden).reshape({-1, hidden.size(2)});
  return head.Logits(rows, 0, head.vocab_size());
}

class RotationTest : public ::testing::TestWithParam<RotationCase> {
 protected:
  Twins twins_{GetParam().architecture, GetParam().changes, GetParam().online};
};

// Q1: the rotated model computes what the plain one does.
TEST_P(RotationTest, Q1LogitsAgree) {
  EXPECT_LT(RelativeError(Logits(*twins_.rotated), Logits(*twins_.plain)), 2e-6);
}

TEST(Rotation, ALargeTwinIsWrittenInShards) {
  const Twins twins("llama", json::object(), true);
  const std::string dir = twins.dir.File("shards");
  std::filesystem::create_directories(dir);
  WriteRotatedCheckpoint(*twins.plain, {true, true}, 5, dir, 4096);
  const auto shards = Checkpoint::Open(dir);
  EXPECT_GT(shards->files().size(), 2U);
  EXPECT_EQ(shards->names(), twins.rotated->names());
  for (const std::string& name : shards->names()) {
    EXPECT_TRUE(at::equal(shards->View(name), twins.rotated->View(name))) << name;
  }
}

// A tied model whose only copy of the embedding is called the head.
TEST(Rotation, Q1HoldsForAnEmbeddingStoredAsTheHead) {
  test::TinyModel model = test::MakeTinyModel("llama", {{"tie_word_embeddings", true}});
  model.tensors["lm_head.weight"] = model.tensors.at("model.embed_tokens.weight");
  model.tensors.erase("model.embed_tokens.weight");
  const test::TempDir dir;
  model.Write(dir.File("plain"));
  const auto plain = Checkpoint::Open(dir.File("plain"));
  std::filesystem::create_directories(dir.File("rotated"));
  WriteRotatedCheckpoint(*plain, {true, true}, 5, dir.File("rotated"));
  EXPECT_LT(RelativeError(Logits(*Checkpoint::Open(dir.File("rotated"))), Logits(*plain)), 2e-6);
}

// Q4, Q5: every block maps h Q to (its output) Q, and no norm has a weight left.
TEST_P(RotationTest, Q4HiddenStatesAreRotated) {
  const Checkpoint& plain = *twins_.plain;
  const Rotation rotation(plain.architecture(), plain.config(), GetParam().online, 5);
  const RopeTable rope = MakeRopeTable(plain.architecture(), plain.config(), 9);
  at::manual_seed(3);
  const at::Tensor x = at::randn({2, 9, plain.config().hidden_size});
  const Block block = LoadBlock(plain, 1);
  const Block rotated = LoadBlock(*twins_.rotated, 1);
  const at::Tensor wanted = rotation.Residual(block.Forward(x, rope)).to(at::kFloat);
  const at::Tensor got = rotated.Forward(rotation.Residual(x).to(at::kFloat), rope);
  EXPECT_LT(RelativeError(got, wanted), 2e-6);
  for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
    Block copy = rotated;
    EXPECT_TRUE(at::equal(copy.FindNorm(norm)->weight, at::ones({x.size(2)})));
  }
}

// Q6: without its online rotations the model computes something else.
TEST_P(RotationTest, Q6OnlineRotationsAreNeeded) {
  const at::Tensor without = Logits(*twins_.rotated, /*drop_online=*/true);
  const double error = RelativeError(without, Logits(*twins_.plain));
  if (GetParam().online) {
    EXPECT_GT(error, 1e-2);
  } else {
    EXPECT_LT(error, 2e-6);
  }
}

// A matrix of the same size and another construction computes something else. A model of before
// says nothing of its matrices.
TEST(Rotation, RunsWithTheMatricesThatMadeIt) {
  const Twins twins("llama", {{"intermediate_size", 172}}, true);
  const std::string path = twins.dir.File("rotated/config.json");
  const json config = json::parse(ReadFile(path, 1 << 20, "TEST"));
  const json& matrices = config.at("quantry_rotation").at("hadamard");
  const json down = {{"size", 172}, {"order", 172}, {"construction", "williamson"}};
  ASSERT_EQ(matrices.back(), down) << matrices;
  const auto with = [&](const json& change) {
    json changed = config;
    changed["quantry_rotation"].merge_patch(change);
    WriteFileAtomically(path, changed.dump());
    return Checkpoint::Open(twins.dir.File("rotated"));
  };
  EXPECT_NO_THROW(LoadBlock(*with(json::object()), 0));
  EXPECT_NO_THROW(LoadBlock(*with({{"hadamard", nullptr}}), 0));
  json other = matrices;
  other.back()["construction"] = "paley-3";
  const auto strange = with({{"hadamard", other}});
  const EngineError error = test::ErrorOf([&] { LoadBlock(*strange, 0); });
  EXPECT_EQ(error.reason, "UNSUPPORTED_ARCHITECTURE") << error.what();
  EXPECT_TRUE(test::Mentions(error, "paley-3")) << error.what();
}

// Q10.
TEST_P(RotationTest, Q10SameSeedSameBytes) {
  const Twins again(GetParam().architecture, GetParam().changes, GetParam().online);
  const Twins other(GetParam().architecture, GetParam().changes, GetParam().online, 6);
  const std::string name = twins_.rotated->EmbeddingName();
  EXPECT_TRUE(at::equal(twins_.rotated->View(name), again.rotated->View(name)));
  EXPECT_FALSE(at::equal(twins_.rotated->View(name), other.rotated->View(name)));
}

INSTANTIATE_TEST_SUITE_P(
    Models, RotationTest,
    ::testing::Values(RotationCase{"llama", "llama", json::object(), true},
                      RotationCase{"llama_offline", "llama", json::object(), false},
                      RotationCase{"tied", "llama", {{"tie_word_embeddings", true}}, true},
                      RotationCase{"one_kv_head", "llama", {{"num_key_value_heads", 1}}, true},
                      RotationCase{
                          "biases", "llama", {{"attention_bias", true}, {"mlp_bias", true}}, true},
                      RotationCase{"wide_mlp", "llama", {{"intermediate_size", 172}}, true},
                      RotationCase{"nine_heads",
                                   "llama",
                                   {{"hidden_size", 36},
                                    {"num_attention_heads", 9},
                                    {"num_key_value_heads", 3},
                                    {"head_dim", 4}},
                                   true},
                      RotationCase{"qwen2", "qwen2", json::object(), true},
                      RotationCase{"qwen3", "qwen3", json::object(), true},
                      RotationCase{"qwen3_offline", "qwen3", json::object(), false},
                      RotationCase{"mistral", "mistral", json::object(), true}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

// Q7: an outlier channel is spread over all of them.
TEST(Rotation, Q7SpreadsOutliers) {
  const Setting setting("llama");
  const Rotation rotation(setting.checkpoint->architecture(), setting.checkpoint->config(), true,
                          1);
  at::Tensor x = at::randn({64, setting.checkpoint->config().hidden_size});
  x.select(1, 3).mul_(50);
  const auto peak = [](const at::Tensor& t) {
    return (t.abs().amax(-1) / t.square().mean(-1).sqrt()).mean().item<double>();
  };
  EXPECT_LT(peak(rotation.Residual(x)), 0.6 * peak(x));
}

// Q9: second moments of the down projection's input are those after the online
// rotation.
TEST(Rotation, Q9SecondMomentsSeeTheOnlineRotation) {
  const Setting setting("llama");
  const Rotation rotation(setting.checkpoint->architecture(), setting.checkpoint->config(), true,
                          1);
  const Block rotated = rotation.Rotate(setting.block);
  Block plain = rotated;
  plain.online.reset();
  const BlockTask task = setting.Task({4, -1, false});
  const int down = setting.block.LinearIndex("mlp.down_proj");
  CountingSink counter;
  const int gate = setting.block.LinearIndex("mlp.gate_proj");
  EXPECT_EQ(InputSource(*setting.block.architecture, down), down);
  EXPECT_NE(gate, down);
  const at::Tensor raw = CollectHessians(task, plain, {down}, counter).at(down);
  const at::Tensor h = CollectHessians(task, rotated, {down}, counter).at(down);
  // The attention output differs between the two, so compare on the MLP alone.
  const at::Tensor x = at::randn({1, 40, setting.x.size(2)});
  at::Tensor before, after;
  plain.Mlp(x, [&](int i, const at::Tensor& in) {
    if (i == down) before = in;
    return plain.Apply(i, in);
  });
  rotated.Mlp(x, [&](int i, const at::Tensor& in) {
    if (i == down) after = in;
    return rotated.Apply(i, in);
  });
  EXPECT_LT(RelativeError(rotated.online->down.Apply(before), after), 1e-6);
  EXPECT_GT(RelativeError(h, raw), 1e-3);
}

TEST(Rotation, RefusesWhatItCannotRotate) {
  const auto error = [](const std::string& architecture, const json& changes, bool online) {
    const Setting setting(architecture, changes, 1);
    return test::ErrorOf([&] {
      Rotation(setting.checkpoint->architecture(), setting.checkpoint->config(), online, 0);
    });
  };
  EXPECT_TRUE(test::Mentions(error("opt", json::object(), false), "RMSNorm"));
  EXPECT_TRUE(
      test::Mentions(error("llama", {{"intermediate_size", 92}}, true), "intermediate_size"));
  EXPECT_TRUE(test::Mentions(error("llama", {{"intermediate_size", 92}}, true), "92"));
  EXPECT_TRUE(
      test::Mentions(error("llama", {{"hidden_size", 30}, {"head_dim", 8}}, false), "hidden_size"));
}

TEST(Quarot, RoundsOnSearchedGridsAndWithGptq) {
  const Setting setting("llama");
  const Rotation rotation(setting.checkpoint->architecture(), setting.checkpoint->config(), true,
                          1);
  const Block rotated = rotation.Rotate(setting.block);
  BlockTask task{rotated,   setting.rope, setting.x, setting.x, {3, -1, false},
                 at::kHalf, {},           0,         at::kCPU};
  task.activations.bits = 8;
  const at::Tensor wanted = rotated.Forward(setting.x, setting.rope);
  CountingSink unused;
  const auto loss = [&](const Method& method) {
    const Block block = Rebuild(rotated, method.Quantize(task, unused).block, task.activations);
    return RelativeError(block.Forward(setting.x, setting.rope), wanted);
  };
  const double nearest = loss(Quarot({}));
  EXPECT_DOUBLE_EQ(nearest, loss(Rtn()));
  EXPECT_LT(loss(Quarot({false, true})), nearest);
  for (const QuarotOptions& options :
       {QuarotOptions{}, QuarotOptions{true, false}, QuarotOptions{true, true}}) {
    CountingSink counter;
    const Quarot quarot(options);
    quarot.Quantize(task, counter);
    EXPECT_EQ(counter.steps(), quarot.Steps(setting.checkpoint->architecture(),
                                            setting.checkpoint->config(), setting.stream()));
  }
}

}  // namespace
}  // namespace quantry::engine
