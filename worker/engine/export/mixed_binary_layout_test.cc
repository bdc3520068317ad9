#include "worker/engine/export/mixed_binary_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "worker/engine/base/file.h"
#include "worker/engine/export/accounting.h"
#include "worker/engine/export/container_reader.h"
#include "worker/engine/export/exporter.h"
#include "worker/engine/export/output_reader.h"
#include "worker/engine/export/rewrite_for_test.h"
#include "worker/engine/export/unpack.h"
#include "worker/engine/model/shared_inputs.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

// Random values of every field that storage keeps as they are.
MixedBinaryWeight RandomMixed(int64_t rows, int64_t columns, const at::Tensor& salient) {
  const auto half = [](const at::Tensor& value) { return value.to(at::kHalf).to(at::kFloat); };
  const int64_t k = salient.size(0);
  MixedBinaryWeight weight;
  weight.columns = columns;
  weight.salient = salient;
  weight.codes = at::randint(16, {rows, k}, at::kByte);
  weight.scales = half(at::rand({rows}).add_(0.01));
  weight.zeros = at::randint(16, {rows}, at::kByte);
  weight.signs = at::randint(2, {rows, columns - k}, at::kByte);
  weight.row_gain = half(at::randn({rows}));
  weight.row_offset = half(at::randn({rows}).mul_(1e-4));
  weight.column_gain = half(at::randn({columns - k}));
  return weight;
}

// A tiny checkpoint with random mixed weights; every input has its own mask.
class MixedBinaryLayoutTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    at::manual_seed(5);
    std::filesystem::create_directories(dir_.File("source"));
    test::MakeTinyModel(GetParam()).Write(dir_.File("source"));
    checkpoint_ = Checkpoint::Open(dir_.File("source"));
    for (int i = 0; i < checkpoint_->config().num_layers; ++i) blocks_.push_back(Quantize(i));
    plan_ = PlanTensors(*checkpoint_, [this](int block, const std::string& name, int64_t) {
      return Find(block, name).mixed->salient_columns();
    });
  }

  QuantizedBlock Quantize(int index) const {
    const Block block = LoadBlock(*checkpoint_, index);
    QuantizedBlock quantized;
    quantized.index = index;
    std::map<int, at::Tensor> masks;
    for (size_t i = 0; i < block.linears.size(); ++i) {
      const int64_t columns = block.linears[i].weight.size(1);
      at::Tensor& mask = masks[InputSource(*block.architecture, static_cast<int>(i))];
      if (!mask.defined()) {
        mask = std::get<0>(at::randperm(columns).slice(0, 0, columns / 5 + 1).sort()).to(at::kInt);
      }
      QuantizedLinear& linear = quantized.linears.emplace_back();
      linear.name = block.linears[i].name;
      linear.bias = block.linears[i].bias;
      linear.mixed = RandomMixed(block.linears[i].weight.size(0), columns, mask);
    }
    for (const Norm& norm : block.norms) {
      const std::string prefix = checkpoint_->BlockPrefix(index);
      const auto add = [&](const std::string& key, const at::Tensor& value) {
        if (value.defined()) quantized.dense[key] = value.to(checkpoint_->Info(prefix + key).dtype);
      };
      add(norm.name + ".weight", norm.weight);
      add(norm.name + ".bias", norm.bias);
    }
    return quantized;
  }

  const QuantizedLinear& Find(int block, const std::string& name) const {
    for (const QuantizedLinear& linear : blocks_.at(block).linears) {
      if (linear.name == name) return linear;
    }
    throw std::out_of_range(name);
  }

  std::unique_ptr<Layout> Make(const std::string& format) const {
    for (const OutputFormatRow& row : OutputFormats()) {
      if (row.name == format) {
        return CreateLayout(row, WeightKind::kMixedBinary, GridSpec(), at::kHalf);
      }
    }
    return nullptr;
  }

  // Writes, verifies and returns the folder.
  std::string Export(const std::string& format) const {
    const std::string folder = dir_.File(format);
    std::filesystem::create_directories(folder);
    const auto layout = Make(format);
    Exporter exporter(*checkpoint_, *layout, folder, plan_);
    for (const QuantizedBlock& block : blocks_) exporter.Add(block);
    exporter.Finish();
    exporter.Verify(Reader());
    return folder;
  }

  BlockReader Reader() const {
    return [this](int index) { return blocks_.at(index); };
  }

  test::TempDir dir_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::vector<QuantizedBlock> blocks_;
  std::vector<PlannedTensor> plan_;
};

// Spec 11.3, 12: dequantizing what was packed gives the weight back.
TEST_P(MixedBinaryLayoutTest, Invariant12PackedEqualsUnpacked) {
  const OutputReader reader(Export("quantry"), "model.quantry");
  const auto read = [&](const std::string& name) { return reader.Read(name); };
  for (const PlannedTensor& tensor : plan_) {
    if (tensor.kind != PlannedTensor::Kind::kLinear) continue;
    const MixedBinaryWeight got = ReadMixedBinary(read, tensor.Linear());
    const QuantizedLinear& wanted = Find(tensor.block, tensor.key);
    EXPECT_TRUE(at::equal(got.Dequantize(), wanted.Dequantize())) << tensor.written;
  }
}

// Spec 11.3, 12: the size is the formula's, to the byte.
TEST_P(MixedBinaryLayoutTest, Invariant12BytesAreTheFormula) {
  const OutputReader reader(Export("quantry"), "model.quantry");
  int64_t wanted = 0;
  int64_t bits = 0;
  uint64_t others = 0;
  for (const PlannedTensor& tensor : plan_) {
    if (tensor.kind != PlannedTensor::Kind::kLinear) {
      others += BytesOf(tensor.dense);
      continue;
    }
    const PlannedLinear linear = tensor.Linear();
    const auto [rows, columns] = linear.shape;
    wanted += MixedBinaryBytes(rows, columns, linear.salient, linear.holds_mask());
    bits += MixedBinaryBits(rows, columns, linear.salient, linear.holds_mask());
  }
  int64_t real = 0;
  for (const std::string& name : reader.names()) {
    real += static_cast<int64_t>(reader.Read(name).nbytes());
  }
  EXPECT_EQ(real, wanted + static_cast<int64_t>(others));
  const auto layout = Make("quantry");
  EXPECT_EQ(OutputBytes(plan_, *layout), static_cast<uint64_t>(real));
  EXPECT_EQ(TheoreticalBytes(plan_, *layout), static_cast<uint64_t>(real));
  const BitAccounting count = CountBits(*checkpoint_, plan_, *layout, 0);
  const auto weights = static_cast<double>(count.linear_weights);
  // The method's bits are the paper's, the container's those of its bytes.
  EXPECT_DOUBLE_EQ(count.linears * weights, static_cast<double>(bits));
  EXPECT_DOUBLE_EQ(StoredBitsPerWeight(plan_, *layout) * weights, static_cast<double>(8 * wanted));
  EXPECT_GT(8 * wanted, bits);
}

TEST_P(MixedBinaryLayoutTest, MasksAreStoredOncePerInput) {
  const OutputReader reader(Export("quantry"), "model.quantry");
  const std::string front = "model.layers.0.";
  if (!reader.Has(front + "self_attn.q_proj.mask")) GTEST_SKIP() << "named otherwise";
  EXPECT_FALSE(reader.Has(front + "self_attn.k_proj.mask"));
  EXPECT_FALSE(reader.Has(front + "self_attn.v_proj.mask"));
  EXPECT_TRUE(reader.Has(front + "self_attn.o_proj.mask"));
  EXPECT_TRUE(reader.Has(front + "mlp.gate_proj.mask"));
  EXPECT_FALSE(reader.Has(front + "mlp.up_proj.mask"));
}

TEST_P(MixedBinaryLayoutTest, UnpackGivesTheDenseOutput) {
  const std::string folder = Export("quantry");
  const OutputReader dense(Export("dense"), "model");
  UnpackFolder(folder, dir_.File("unpacked"));
  const OutputReader unpacked(dir_.File("unpacked"), "model");
  ASSERT_EQ(unpacked.names(), dense.names());
  for (const std::string& name : dense.names()) {
    EXPECT_TRUE(at::equal(unpacked.Read(name), dense.Read(name))) << name;
  }
}

TEST_P(MixedBinaryLayoutTest, VerifySeesAnyOtherValue) {
  for (const char* format : {"quantry", "dense"}) {
    const std::string folder = dir_.File(format);
    std::filesystem::create_directories(folder);
    const auto layout = Make(format);
    Exporter exporter(*checkpoint_, *layout, folder, plan_);
    for (const QuantizedBlock& block : blocks_) exporter.Add(block);
    exporter.Finish();
    const auto refuses = [&](const std::function<void(MixedBinaryWeight&)>& change) {
      const auto changed = [&](int index) {
        QuantizedBlock block = blocks_.at(index);
        change(*block.linears.back().mixed);
        return block;
      };
      EXPECT_EQ(test::ErrorOf([&] { exporter.Verify(changed); }).reason,
                "OUTPUT_VERIFICATION_FAILED");
    };
    refuses([](MixedBinaryWeight& w) { w.codes = w.codes.bitwise_xor(1); });
    refuses([](MixedBinaryWeight& w) { w.signs = w.signs.bitwise_xor(1); });
    refuses([](MixedBinaryWeight& w) { w.zeros = w.zeros.bitwise_xor(1); });
    refuses([](MixedBinaryWeight& w) { w.scales = w.scales * 2; });
    refuses([](MixedBinaryWeight& w) { w.row_gain = w.row_gain * 2; });
    refuses([](MixedBinaryWeight& w) { w.column_gain = -w.column_gain; });
    refuses([](MixedBinaryWeight& w) { w.salient = w.salient.flip(0); });
    EXPECT_NO_THROW(exporter.Verify(Reader()));
  }
}

// Spec 11.3, 12: unused bits influence nothing.
TEST_P(MixedBinaryLayoutTest, Invariant12PadBitsDoNotMatter) {
  const OutputReader reader(Export("quantry"), "model.quantry");
  for (const PlannedTensor& tensor : plan_) {
    if (tensor.kind != PlannedTensor::Kind::kLinear) continue;
    const PlannedLinear linear = tensor.Linear();
    const int64_t others = linear.shape.in - linear.salient;
    const auto fill = [](const at::Tensor& bytes, int64_t bits) {
      const int64_t used = bits % 8;
      if (used == 0) return bytes;
      at::Tensor filled = bytes.clone();
      filled.select(-1, -1).bitwise_or_((0xff << used) & 0xff);
      return filled;
    };
    const auto read = [&](const std::string& name) {
      const at::Tensor value = reader.Read(name);
      if (name == linear.module + ".signs") return fill(value, others);
      if (name == linear.module + ".salient_codes") return fill(value, 4 * linear.salient);
      if (name == linear.module + ".salient_zeros") return fill(value, 4 * linear.shape.out);
      if (name == linear.mask_module + ".mask") return fill(value, linear.shape.in);
      return value;
    };
    const QuantizedLinear& wanted = Find(tensor.block, tensor.key);
    EXPECT_TRUE(at::equal(ReadMixedBinary(read, linear).Dequantize(), wanted.Dequantize()));
  }
}

TEST_P(MixedBinaryLayoutTest, FutureSchemaAndTruncationAreRefused) {
  const std::string folder = Export("quantry");
  const std::string config = folder + "/config.json";
  auto json = nlohmann::json::parse(ReadFile(config, 1 << 20, "TEST"));
  json["quantization_config"]["schema"] = "quantry.container.v9";
  std::ofstream(config) << json.dump();
  const EngineError error = test::ErrorOf([&] { UnpackFolder(folder, dir_.File("unpacked")); });
  EXPECT_TRUE(test::Mentions(error, "quantry.container.v9")) << error.what();
  json["quantization_config"]["schema"] = kMixedContainerSchema;
  std::ofstream(config) << json.dump();
  const std::string weights = folder + "/model.quantry.safetensors";
  std::filesystem::resize_file(weights, std::filesystem::file_size(weights) - 7);
  EXPECT_EQ(test::ErrorOf([&] { UnpackFolder(folder, dir_.File("unpacked")); }).reason,
            "INVALID_CHECKPOINT");
}

// The file's own schema counts, whatever config.json says: for whoever runs it (eval, generate)
// as for unpack.
TEST_P(MixedBinaryLayoutTest, FutureSchemaOfTheFileIsRefused) {
  const std::string folder = Export("quantry");
  test::Redescribe(
      folder, [](nlohmann::json& description) { description["schema"] = "quantry.container.v9"; });
  const auto refused = [](const EngineError& error) {
    return error.reason == "INVALID_CHECKPOINT" && test::Mentions(error, "quantry.container.v9") &&
           test::Mentions(error, std::string(kMixedContainerSchema));
  };
  const EngineError error = test::ErrorOf([&] { ContainerReader reader(folder); });
  EXPECT_TRUE(refused(error) && test::Mentions(error, "written by a newer one")) << error.what();
  EXPECT_TRUE(refused(test::ErrorOf([&] { UnpackFolder(folder, dir_.File("unpacked")); })));
}

TEST_P(MixedBinaryLayoutTest, AKindThatItsSchemaDoesNotHaveIsRefused) {
  const std::string folder = Export("quantry");
  const std::string module = PlannedLinears(plan_).front().module;
  const std::vector<std::pair<nlohmann::json, std::string>> cases = {
      {{{"kind", "ternary"}, {"shape", {32, 32}}, {"salient", 7}, {"mask", module + ".mask"}},
       "\"ternary\""},
      {{{"bits", 4}, {"group_size", -1}, {"symmetric", false}, {"shape", {32, 32}}}, "\"grid\""},
      {{{"kind", 7}}, "7"},
      {"mixed", "\"mixed\""}};
  for (const auto& [word, got] : cases) {
    test::Redescribe(folder,
                     [&](nlohmann::json& description) { description["linears"][module] = word; });
    for (const EngineError& error :
         {test::ErrorOf([&] { ContainerReader(folder).kind(); }),
          test::ErrorOf([&] { UnpackFolder(folder, dir_.File("unpacked")); })}) {
      EXPECT_EQ(error.reason, "INVALID_CHECKPOINT") << got;
      EXPECT_TRUE(test::Mentions(error, module +
                                            ": wanted the kind \"mixed-binary\", as its "
                                            "schema has it, got " +
                                            got))
          << error.what();
    }
  }
}

// Every fp16 part of a linear is looked at.
TEST_P(MixedBinaryLayoutTest, SideDataThatIsNotFiniteIsRefused) {
  const OutputReader reader(Export("quantry"), "model.quantry");
  const PlannedTensor& tensor = *std::find_if(plan_.begin(), plan_.end(), [](const auto& planned) {
    return planned.kind == PlannedTensor::Kind::kLinear;
  });
  const PlannedLinear linear = tensor.Linear();
  for (const char* part : {".salient_scales", ".row_gain", ".row_offset", ".column_gain"}) {
    for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
      const auto read = [&](const std::string& name) {
        at::Tensor value = reader.Read(name).clone();
        if (name == linear.module + part) value[1] = bad;
        return value;
      };
      const EngineError error = test::ErrorOf([&] { ReadMixedBinary(read, linear); });
      EXPECT_TRUE(test::Mentions(error, linear.module + part)) << error.what();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, MixedBinaryLayoutTest,
                         ::testing::Values("llama", "qwen2", "opt"));

// The layout by hand: docs/formats/quantry-container.md.
TEST(MixedBinaryLayout, BytesByHand) {
  QuantizedLinear linear;
  MixedBinaryWeight& weight = linear.mixed.emplace();
  weight.columns = 13;
  weight.salient = at::tensor({0, 9, 12}, at::kInt);
  weight.codes = at::tensor({1, 2, 3}, at::kByte).view({1, 3});
  weight.scales = at::ones({1});
  weight.zeros = at::tensor({5}, at::kByte);
  weight.signs = at::tensor({1, 0, 0, 0, 1, 1, 0, 0, 0, 1}, at::kByte).view({1, 10});
  weight.row_gain = weight.row_offset = at::ones({1});
  weight.column_gain = at::ones({10});
  const MixedBinaryLayout layout({}, at::kHalf, WeightKind::kMixedBinary);
  const std::vector<at::Tensor> values = layout.Encode(linear);
  EXPECT_TRUE(at::equal(values.at(0), at::tensor({0x21, 0x03}, at::kByte).view({1, 2})));
  EXPECT_TRUE(at::equal(values.at(2), at::tensor({0x05}, at::kByte)));
  EXPECT_TRUE(at::equal(values.at(3), at::tensor({0x31, 0x02}, at::kByte).view({1, 2})));
  EXPECT_TRUE(at::equal(values.at(7), at::tensor({0x01, 0x12}, at::kByte)));
}

}  // namespace
}  // namespace quantry::engine
