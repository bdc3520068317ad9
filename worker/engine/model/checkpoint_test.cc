#include "worker/engine/model/checkpoint.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "worker/engine/base/file.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

using nlohmann::json;
using test::ErrorOf;
using test::MakeTinyModel;
using test::Mentions;
using test::TinyModel;

class CheckpointTest : public ::testing::Test {
 protected:
  EngineError OpenError() {
    return ErrorOf([&] { Checkpoint::Open(dir_.path()); });
  }
  // Writes two shards, then changes their index.
  EngineError ErrorOfIndex(const std::function<void(json&)>& change) {
    MakeTinyModel("llama").WriteSharded(dir_.path());
    const std::string path = dir_.File("model.safetensors.index.json");
    json index = json::parse(ReadFile(path, 1 << 20, "X"));
    change(index);
    WriteFileAtomically(path, index.dump());
    return OpenError();
  }

  test::TempDir dir_;
};

class EveryArchitectureTest : public CheckpointTest,
                              public ::testing::WithParamInterface<const Architecture*> {};

TEST_P(EveryArchitectureTest, OpensSingleAndSharded) {
  const TinyModel model = MakeTinyModel(GetParam()->name);
  model.Write(dir_.File("single"));
  model.WriteSharded(dir_.File("sharded"));
  const auto single = Checkpoint::Open(dir_.File("single"));
  const auto sharded = Checkpoint::Open(dir_.File("sharded"));
  EXPECT_EQ(single->names().size(), model.tensors.size());
  EXPECT_EQ(single->names(), sharded->names());
  EXPECT_EQ(single->files().size(), 1u);
  EXPECT_EQ(sharded->files().size(), 2u);
  int64_t parameters = 0;
  for (const auto& [name, tensor] : model.tensors) {
    parameters += tensor.numel();
    EXPECT_TRUE(sharded->LoadFloat(name).equal(tensor)) << name;
  }
  EXPECT_EQ(single->parameters(), parameters);
}

INSTANTIATE_TEST_SUITE_P(All, EveryArchitectureTest, ::testing::ValuesIn(Architectures()),
                         [](const auto& row) { return row.param->name; });

TEST_F(CheckpointTest, NamesWithoutTheUsualPrefix) {
  TinyModel model = MakeTinyModel("llama", {{"tie_word_embeddings", true}});
  std::map<std::string, at::Tensor> bare;
  for (const auto& [name, tensor] : model.tensors) bare[name.substr(6)] = tensor;
  model.tensors = bare;
  model.Write(dir_.path());
  const auto checkpoint = Checkpoint::Open(dir_.path());
  EXPECT_EQ(checkpoint->BlockPrefix(1), "layers.1.");
  EXPECT_EQ(checkpoint->HeadName(), "embed_tokens.weight");
}

TEST_F(CheckpointTest, TiedMatrixUnderEitherName) {
  TinyModel model = MakeTinyModel("llama", {{"tie_word_embeddings", true}});
  model.tensors["lm_head.weight"] = model.tensors["model.embed_tokens.weight"];
  model.Write(dir_.File("both"));
  EXPECT_EQ(Checkpoint::Open(dir_.File("both"))->EmbeddingName(), "model.embed_tokens.weight");
  model.tensors.erase("model.embed_tokens.weight");
  model.Write(dir_.File("head"));
  EXPECT_EQ(Checkpoint::Open(dir_.File("head"))->EmbeddingName(), "lm_head.weight");
}

TEST_F(CheckpointTest, ATiedHeadThatIsStoredMustBeTheEmbedding) {
  TinyModel model = MakeTinyModel("llama", {{"tie_word_embeddings", true}});
  at::Tensor& embedding = model.tensors["model.embed_tokens.weight"];
  embedding = embedding.to(at::kBFloat16);
  at::Tensor& head = model.tensors["lm_head.weight"] = embedding.clone();
  model.Write(dir_.path());
  EXPECT_NO_THROW(Checkpoint::Open(dir_.path()));
  head = embedding.to(at::kFloat);
  model.Write(dir_.path());
  EXPECT_NO_THROW(Checkpoint::Open(dir_.path()));
  head[49][31] += 1;
  model.Write(dir_.path());
  const EngineError error = OpenError();
  EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
  EXPECT_TRUE(Mentions(error, "tie_word_embeddings to false")) << error.what();
}

TEST_F(CheckpointTest, StorageDtypeIsThatOfTheLinears) {
  TinyModel model = MakeTinyModel("llama");
  for (auto& [name, tensor] : model.tensors) {
    if (name.find("proj") != std::string::npos) tensor = tensor.to(at::kBFloat16);
  }
  model.Write(dir_.path());
  EXPECT_EQ(Checkpoint::Open(dir_.path())->storage_dtype(), at::kBFloat16);
}

TEST_F(CheckpointTest, NoConfig) {
  const EngineError error = OpenError();
  EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
  EXPECT_TRUE(Mentions(error, "config.json")) << error.what();
}

TEST_F(CheckpointTest, AnArtifactsFolderNamesItsOutputs) {
  MakeTinyModel("llama").Write(dir_.File("quantry"));
  MakeTinyModel("llama").Write(dir_.File("dense"));
  std::filesystem::create_directories(dir_.File("report"));
  EXPECT_TRUE(Mentions(OpenError(), "there is no file")) << "no artifact without a manifest";
  WriteFileAtomically(dir_.File("manifest.json"), "{}");
  const EngineError error = OpenError();
  EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
  EXPECT_TRUE(Mentions(error, "got that of an artifact")) << error.what();
  EXPECT_EQ(error.metadata.at("outputs"), dir_.File("dense") + ", " + dir_.File("quantry"));
}

TEST_F(CheckpointTest, UnknownModelTypeNamesItsStrangeTensors) {
  TinyModel model = MakeTinyModel("llama");
  model.config["model_type"] = "gpt_bigcode";
  model.tensors["transformer.h.0.attn.c_attn.weight"] = at::zeros({1});
  model.tensors["transformer.h.11.attn.c_attn.weight"] = at::zeros({1});
  model.Write(dir_.path());
  const EngineError error = OpenError();
  EXPECT_EQ(error.reason, "UNSUPPORTED_ARCHITECTURE");
  EXPECT_TRUE(Mentions(error, "gpt_bigcode") && Mentions(error, "qwen3")) << error.what();
  EXPECT_EQ(error.metadata.at("tensors"), "transformer.h.N.attn.c_attn.weight");
}

TEST_F(CheckpointTest, MissingShardIsNamed) {
  MakeTinyModel("llama").WriteSharded(dir_.path());
  std::filesystem::remove(dir_.File("model-00002-of-00002.safetensors"));
  const EngineError error = OpenError();
  EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
  EXPECT_TRUE(Mentions(error, "model-00002-of-00002.safetensors")) << error.what();
}

TEST_F(CheckpointTest, TruncatedShard) {
  MakeTinyModel("llama").WriteSharded(dir_.path());
  const std::string shard = dir_.File("model-00001-of-00002.safetensors");
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 100);
  EXPECT_TRUE(Mentions(OpenError(), "cut short"));
}

TEST_F(CheckpointTest, IndexMayNotLeaveTheFolder) {
  for (const char* name : {"../x.safetensors", "/etc/passwd", "a\\b.safetensors",
                           "sub/x.safetensors", "..", ".hidden.safetensors", ""}) {
    const EngineError error =
        ErrorOfIndex([&](json& index) { index["weight_map"]["model.norm.weight"] = name; });
    EXPECT_EQ(error.reason, "INVALID_CHECKPOINT") << name;
    EXPECT_TRUE(Mentions(error, "plain file name")) << error.what();
  }
  const EngineError nul = ErrorOfIndex([](json& index) {
    index["weight_map"]["model.norm.weight"] = std::string("a\0.safetensors", 14);
  });
  EXPECT_TRUE(Mentions(nul, "plain file name")) << nul.what();
}

TEST_F(CheckpointTest, IndexMayNotNameAPickle) {
  const EngineError error = ErrorOfIndex(
      [](json& index) { index["weight_map"]["model.norm.weight"] = "pytorch_model.bin"; });
  EXPECT_EQ(error.reason, "CHECKPOINT_FORMAT_REFUSED");
}

TEST_F(CheckpointTest, IndexWithoutAMap) {
  for (const json& map : {json(), json::object(), json::array(), json{{"a", 1}}}) {
    EXPECT_EQ(ErrorOfIndex([&](json& index) { index["weight_map"] = map; }).reason,
              "INVALID_CHECKPOINT");
  }
}

TEST_F(CheckpointTest, IndexThatDisagreesWithItsShards) {
  const EngineError error = ErrorOfIndex([](json& index) {
    index["weight_map"]["model.ghost.weight"] = "model-00001-of-00002.safetensors";
  });
  EXPECT_TRUE(Mentions(error, "model.ghost.weight")) << error.what();
}

TEST_F(CheckpointTest, OneTensorInTwoShards) {
  MakeTinyModel("llama").WriteSharded(dir_.path());
  std::filesystem::copy_file(dir_.File("model-00001-of-00002.safetensors"),
                             dir_.File("again.safetensors"));
  const std::string path = dir_.File("model.safetensors.index.json");
  json index = json::parse(ReadFile(path, 1 << 20, "X"));
  index["weight_map"]["lm_head.weight"] = "again.safetensors";
  WriteFileAtomically(path, index.dump());
  EXPECT_TRUE(Mentions(OpenError(), "is both in"));
}

TEST_F(CheckpointTest, PicklesOnlySaysHowToConvert) {
  MakeTinyModel("llama").Write(dir_.path());
  for (const char* name : {"pytorch_model.bin", "model.pt", "model.pth"}) {
    std::filesystem::remove(dir_.File("model.safetensors"));
    std::ofstream(dir_.File(name)) << "x";
    const EngineError error = OpenError();
    EXPECT_EQ(error.reason, "CHECKPOINT_FORMAT_REFUSED");
    EXPECT_TRUE(Mentions(error, name) && Mentions(error, "safe_serialization")) << error.what();
    std::filesystem::remove(dir_.File(name));
  }
  EXPECT_EQ(OpenError().reason, "INVALID_CHECKPOINT");
}

TEST_F(CheckpointTest, ShapeContradictsConfig) {
  TinyModel model = MakeTinyModel("llama");
  model.config["intermediate_size"] = 68;
  model.Write(dir_.path());
  const EngineError error = OpenError();
  EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
  EXPECT_TRUE(Mentions(error, "mlp.gate_proj.weight")) << error.what();
  EXPECT_EQ(error.metadata.at("wanted"), "68, 32");
  EXPECT_EQ(error.metadata.at("got"), "64, 32");
}

TEST_F(CheckpointTest, MissingTensorIsNamed) {
  TinyModel model = MakeTinyModel("llama");
  model.tensors.erase("model.layers.1.mlp.up_proj.weight");
  model.Write(dir_.path());
  EXPECT_TRUE(Mentions(OpenError(), "model.layers.1.mlp.up_proj.weight"));
}

TEST_F(CheckpointTest, MoreLayersInConfigThanInTheFile) {
  TinyModel model = MakeTinyModel("llama");
  model.config["num_hidden_layers"] = 4096;
  model.Write(dir_.path());
  EXPECT_TRUE(Mentions(OpenError(), "model.layers.2."));
}

TEST_F(CheckpointTest, SurplusTensorsAreNotDroppedSilently) {
  TinyModel model = MakeTinyModel("llama");
  model.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::zeros({4});
  model.Write(dir_.path());
  EXPECT_NO_THROW(Checkpoint::Open(dir_.path()));
  model.tensors["model.layers.0.self_attn.q_proj.bias"] = at::zeros({32});
  model.Write(dir_.path());
  EXPECT_TRUE(Mentions(OpenError(), "self_attn.q_proj.bias"));
}

TEST_F(CheckpointTest, IntegerWeights) {
  TinyModel model = MakeTinyModel("llama");
  model.tensors["model.norm.weight"] = at::ones({32}, at::kInt);
  model.Write(dir_.path());
  EXPECT_TRUE(Mentions(OpenError(), "dtype I32"));
}

}  // namespace
}  // namespace quantry::engine
