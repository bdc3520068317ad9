#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <tuple>

#include "worker/engine/calibration/dataset.h"
#include "worker/engine/export/exporter.h"
#include "worker/engine/inference/decoder.h"
#include "worker/engine/inference/generate.h"
#include "worker/engine/inference/runnable_model.h"
#include "worker/engine/inference/text_stream.h"
#include "worker/engine/model/shared_inputs.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/testing/devices.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

using test::ErrorOf;
using test::MakeTinyModel;
using test::Mentions;

MixedBinaryWeight RandomMixed(int64_t rows, int64_t columns, const at::Tensor& salient) {
  const auto half = [](const at::Tensor& value) { return value.to(at::kHalf).to(at::kFloat); };
  const int64_t k = salient.size(0);
  MixedBinaryWeight weight;
  weight.columns = columns;
  weight.salient = salient;
  weight.codes = at::randint(16, {rows, k}, at::kByte);
  weight.scales = half(at::rand({rows}) * 0.02 + 0.01);
  weight.zeros = at::randint(16, {rows}, at::kByte);
  weight.signs = at::randint(2, {rows, columns - k}, at::kByte);
  weight.row_gain = half(at::randn({rows}) * 0.2);
  weight.row_offset = half(at::randn({rows}) * 1e-2);
  weight.column_gain = half(at::randn({columns - k}));
  return weight;
}

// Logits [tokens, vocabulary], on the CPU, of ids by plain forward passes over
// whole blocks on a device.
at::Tensor WholeLogits(const Checkpoint& checkpoint, const std::vector<Block>& blocks,
                       const std::vector<int32_t>& ids, const at::Device& device = at::kCPU) {
  const auto tokens = static_cast<int64_t>(ids.size());
  const RopeTable rope =
      MakeRopeTable(checkpoint.architecture(), checkpoint.config(), tokens, device);
  at::Tensor hidden =
      Embed(checkpoint, at::tensor(ids, at::kInt).to(at::kLong).view({1, tokens}), device);
  for (const Block& block : blocks) hidden = block.Forward(hidden, rope);
  const OutputHead head(checkpoint, device);
  return head.Logits(head.Normalize(hidden).squeeze(0), 0, head.vocab_size()).cpu();
}

const std::vector<int32_t> kIds = {3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9};

// A tiny checkpoint, and containers made of it.
class InferenceTest : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  void SetUp() override {
    QUANTRY_TAKE_DEVICE(device_, std::get<1>(GetParam()));
    at::manual_seed(11);
    source_ = Folder("source");
    MakeTinyModel(std::get<0>(GetParam())).Write(source_);
    checkpoint_ = Checkpoint::Open(source_);
  }

  std::string Folder(const std::string& name) const {
    std::filesystem::create_directories(dir_.File(name));
    return dir_.File(name);
  }

  // Every linear by `quantize`; norms as they are.
  std::vector<QuantizedBlock> Quantize(
      const std::function<void(const Block&, int, QuantizedLinear*)>& quantize) const {
    std::vector<QuantizedBlock> blocks;
    for (int i = 0; i < checkpoint_->config().num_layers; ++i) {
      const Block block = LoadBlock(*checkpoint_, i);
      QuantizedBlock& quantized = blocks.emplace_back();
      quantized.index = i;
      for (size_t j = 0; j < block.linears.size(); ++j) {
        QuantizedLinear& linear = quantized.linears.emplace_back();
        quantize(block, static_cast<int>(j), &linear);
        linear.name = block.linears[j].name;
        linear.bias = block.linears[j].bias;
      }
      for (const Norm& norm : block.norms) {
        quantized.dense[norm.name + ".weight"] = norm.weight;
        if (norm.bias.defined()) quantized.dense[norm.name + ".bias"] = norm.bias;
      }
    }
    return blocks;
  }

  std::vector<QuantizedBlock> QuantizeMixed() const {
    std::map<int64_t, at::Tensor> masks;  // by columns and input
    return Quantize([&](const Block& block, int j, QuantizedLinear* linear) {
      const int64_t rows = block.linears[j].weight.size(0);
      const int64_t columns = block.linears[j].weight.size(1);
      at::Tensor& mask = masks[block.index * 100 + InputSource(*block.architecture, j)];
      if (!mask.defined()) {
        mask = std::get<0>(at::randperm(columns).slice(0, 0, columns / 5 + 1).sort()).to(at::kInt);
      }
      linear->mixed = RandomMixed(rows, columns, mask);
    });
  }

  std::string WriteContainer(const std::vector<QuantizedBlock>& blocks,
                             const GridSpec& grid) const {
    const std::string dir = Folder("container");
    const bool mixed = blocks[0].linears[0].mixed.has_value();
    std::unique_ptr<Layout> layout;
    for (const OutputFormatRow& row : OutputFormats()) {
      if (row.name != "quantry") continue;
      layout = CreateLayout(row, mixed ? WeightKind::kMixedBinary : WeightKind::kGrid, grid,
                            ScaleDtypeFor(checkpoint_->storage_dtype()));
    }
    const auto salient = [&](int block, const std::string& name, int64_t) -> int64_t {
      for (const QuantizedLinear& linear : blocks[block].linears) {
        if (linear.name == name) return linear.mixed->salient_columns();
      }
      return 0;
    };
    Exporter exporter(*checkpoint_, *layout, dir,
                      mixed ? PlanTensors(*checkpoint_, salient) : PlanTensors(*checkpoint_));
    for (const QuantizedBlock& block : blocks) exporter.Add(block);
    exporter.Finish();
    return dir;
  }

  // The blocks a quantized chain stands for, in plain fp32.
  std::vector<Block> Dense(const std::vector<QuantizedBlock>& quantized) const {
    std::vector<Block> blocks;
    for (const QuantizedBlock& from : quantized) {
      Block block = LoadBlock(*checkpoint_, from.index);
      for (const QuantizedLinear& linear : from.linears) {
        block.linears[block.LinearIndex(linear.name)].weight = linear.Dequantize();
      }
      blocks.push_back(block);
    }
    return blocks;
  }

  at::Device device_ = at::kCPU;
  test::TempDir dir_;
  std::string source_;
  std::shared_ptr<const Checkpoint> checkpoint_;
};

INSTANTIATE_TEST_SUITE_P(All, InferenceTest,
                         ::testing::Combine(::testing::Values("llama", "qwen2", "qwen3", "opt"),
                                            test::kDevices),
                         [](const auto& of) {
                           return std::string(std::get<0>(of.param)) + "_" + std::get<1>(of.param);
                         });

TEST_P(InferenceTest, DecoderInPiecesEqualsTheWholeForward) {
  const auto model = RunnableModel::Open(source_);
  EXPECT_EQ(model->kind(), "dense");
  const at::Tensor wanted = WholeLogits(*checkpoint_, model->LoadBlocks(), kIds);
  const auto size = static_cast<int64_t>(kIds.size());
  for (const size_t first : {1UL, 4UL, kIds.size()}) {
    Decoder decoder(model->checkpoint(), model->LoadBlocks(device_), size, device_);
    at::Tensor logits = decoder.Append(
        std::vector<int32_t>(kIds.begin(), kIds.begin() + static_cast<int64_t>(first)));
    for (size_t i = first; i < kIds.size(); ++i) {
      EXPECT_TRUE(logits.cpu().allclose(wanted[static_cast<int64_t>(i) - 1], 1e-4, 1e-5)) << i;
      logits = decoder.Append({kIds[i]});
    }
    EXPECT_TRUE(logits.cpu().allclose(wanted[size - 1], 1e-4, 1e-5));
    EXPECT_EQ(decoder.length(), size);
    EXPECT_EQ(ErrorOf([&] { decoder.Append({1}); }).reason, "INTERNAL");
  }
}

TEST_P(InferenceTest, PackedContainerRunsWithoutItsDenseWeights) {
  const std::vector<QuantizedBlock> quantized = QuantizeMixed();
  const std::string dir = WriteContainer(quantized, {});
  const at::Tensor wanted = WholeLogits(*checkpoint_, Dense(quantized), kIds);
  using Product = RunnableModel::PackedProduct;
  for (const Product product : {Product::kAuto, Product::kTiles}) {
    const auto model = RunnableModel::Open(dir, product);
    EXPECT_EQ(model->kind(), "mixed-binary");
    const std::vector<Block> blocks = model->LoadBlocks(device_);
    for (const Block& block : blocks) {
      for (const Linear& linear : block.linears) EXPECT_FALSE(linear.weight.defined());
    }
    const at::Tensor got = WholeLogits(*model->checkpoint(), blocks, kIds, device_);
    EXPECT_TRUE(got.allclose(wanted, 1e-4, 1e-4));
    EXPECT_FALSE(got.allclose(
        WholeLogits(*checkpoint_, RunnableModel::Open(source_)->LoadBlocks(), kIds), 1e-2, 1e-2));
  }
}

// On the CPU the two products add up in other orders: their last digits tell
// which of them was taken.
TEST_P(InferenceTest, TilesAreTakenWhereAskedFor) {
  const std::string dir = WriteContainer(QuantizeMixed(), {});
  const auto logits = [&](RunnableModel::PackedProduct product) {
    const auto model = RunnableModel::Open(dir, product);
    return WholeLogits(*model->checkpoint(), model->LoadBlocks(device_), kIds, device_);
  };
  const at::Tensor chosen = logits(RunnableModel::PackedProduct::kAuto);
  EXPECT_EQ(chosen.equal(logits(RunnableModel::PackedProduct::kTiles)), !device_.is_cpu());
}

TEST_P(InferenceTest, GridContainerEqualsItsIntegers) {
  const GridSpec grid = {3, 16, false};
  const std::vector<QuantizedBlock> quantized =
      Quantize([&](const Block& block, int j, QuantizedLinear* linear) {
        *linear = QuantizeNearest("", block.linears[j].weight, {}, grid, at::kHalf);
      });
  const auto model = RunnableModel::Open(WriteContainer(quantized, grid));
  EXPECT_EQ(model->kind(), "grid");
  EXPECT_TRUE(WholeLogits(*model->checkpoint(), model->LoadBlocks(), kIds)
                  .equal(WholeLogits(*checkpoint_, Dense(quantized), kIds)));
  EXPECT_TRUE(WholeLogits(*model->checkpoint(), model->LoadBlocks(device_), kIds, device_)
                  .allclose(WholeLogits(*checkpoint_, Dense(quantized), kIds), 1e-4, 1e-4));
}

TEST_P(InferenceTest, ContainersThatLieAreRefused) {
  const std::string dir = WriteContainer(QuantizeMixed(), {});
  const std::string config = dir + "/config.json";
  nlohmann::json json = nlohmann::json::parse(std::ifstream(config));
  const bool opt = json["model_type"] == "opt";
  json[opt ? "ffn_dim" : "intermediate_size"] = 128;
  std::ofstream(config) << json.dump();
  const EngineError error = ErrorOf([&] { RunnableModel::Open(dir)->LoadBlocks(); });
  EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
  std::filesystem::remove(dir + "/model.quantry.safetensors");
  EXPECT_EQ(ErrorOf([&] { RunnableModel::Open(dir); }).reason, "INVALID_CHECKPOINT");
}

TEST_P(InferenceTest, GreedyTakesTheLikeliestTokenUntilItsLimitOrAnEnd) {
  const auto model = RunnableModel::Open(source_);
  const std::vector<Block> blocks = model->LoadBlocks();
  std::vector<int32_t> wanted = {1, 2, 3};
  for (int i = 0; i < 5; ++i) {
    const at::Tensor logits = WholeLogits(*checkpoint_, blocks, wanted);
    wanted.push_back(static_cast<int32_t>(logits[-1].argmax().item<int64_t>()));
  }
  std::vector<int32_t> got = {1, 2, 3};
  double clock = 0;
  const auto generate = [&](const std::set<int32_t>& ends) {
    got.resize(3);
    Decoder decoder(model->checkpoint(), blocks, 8);
    return GenerateGreedily(
        decoder, {1, 2, 3}, 5, ends, [&](int32_t id) { got.push_back(id); },
        [&] { return clock += 1; });
  };
  const GenerationReport report = generate({});
  EXPECT_EQ(got, wanted);
  EXPECT_EQ(report.prompt_tokens, 3);
  EXPECT_EQ(report.new_tokens, 5);
  EXPECT_FALSE(report.stopped);
  const GenerationReport ended = generate({wanted[3]});
  EXPECT_EQ(ended.new_tokens, 0);
  EXPECT_TRUE(ended.stopped);
}

TEST(TextStream, GivesWholeCharactersAndAllTheText) {
  const auto tokenizer = Tokenizer::Load(QUANTRY_SOURCE_DIR "/examples/stories260k/tokenizer.json");
  for (const std::string text :
       {"Once upon a time, there was a dog.", "caf\u00e9 \U0001f600 \u20ac!", "a  b\n\nc",
        "\u65e5\u672c\u8a9e \uc548\ub155\ud558\uc138\uc694 \uc138\uacc4!",
        "\u0928\u092e\u0938\u094d\u0924\u0947, \U0001f600\U0001f600\U0001f600"}) {
    const std::vector<int32_t> ids = tokenizer->Encode(text);
    for (size_t prompt = 1; prompt < ids.size(); ++prompt) {
      const std::vector<int32_t> given(ids.begin(), ids.begin() + static_cast<int64_t>(prompt));
      TextStream stream(tokenizer, given);
      std::string shown;
      for (size_t i = prompt; i < ids.size(); ++i) {
        const std::string piece = stream.Add(ids[i]);
        EXPECT_EQ(piece.find("\xef\xbf\xbd"), std::string::npos) << text;
        shown += piece;
      }
      shown += stream.Finish();
      const std::string before = tokenizer->Decode(given);
      if (before.find("\xef\xbf\xbd") != std::string::npos) continue;  // cut inside a character
      EXPECT_EQ(before + shown, text);
    }
  }
}

TEST(TextStream, AStrayByteAfterAWholeCharacterCutsNoCharacter) {
  const auto tokenizer = Tokenizer::Load(QUANTRY_SOURCE_DIR "/examples/stories260k/tokenizer.json");
  const std::vector<int32_t> face = tokenizer->Encode("\U0001f600");
  std::vector<int32_t> ids = face;
  ids.push_back(face.back());  // a byte that starts no character
  ids.push_back(tokenizer->Encode("a").back());
  TextStream stream(tokenizer, tokenizer->Encode("x"));
  std::string shown;
  for (const int32_t id : ids) shown += stream.Add(id);
  shown += stream.Finish();
  EXPECT_EQ(FindInvalidUtf8(shown), -1) << shown;
  EXPECT_NE(shown.find("\U0001f600"), std::string::npos) << shown;
  EXPECT_TRUE(shown.ends_with("a")) << shown;
}

TEST(TextStream, ShowsWhatNeverBecomesACharacter) {
  const auto tokenizer = Tokenizer::Load(QUANTRY_SOURCE_DIR "/examples/stories260k/tokenizer.json");
  TextStream stream(tokenizer, tokenizer->Encode("x"));
  const int32_t lead = tokenizer->Encode("\u00e9").back() - 1;  // some byte token
  std::string shown;
  for (int i = 0; i < 6; ++i) shown += stream.Add(lead);
  EXPECT_FALSE(shown.empty());
}

}  // namespace
}  // namespace quantry::engine
