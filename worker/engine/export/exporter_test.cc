#include "worker/engine/export/exporter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/export/accounting.h"
#include "worker/engine/export/container_reader.h"
#include "worker/engine/export/manifest_check.h"
#include "worker/engine/export/mixed_binary_layout.h"
#include "worker/engine/export/output_reader.h"
#include "worker/engine/export/rewrite_for_test.h"
#include "worker/engine/export/unpack.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

// A tiny checkpoint and its blocks rounded to a grid.
class ExporterTest : public ::testing::TestWithParam<std::string> {
 protected:
  void Open(const std::string& architecture, const GridSpec& grid,
            const nlohmann::json& changes = nlohmann::json::object()) {
    std::filesystem::create_directories(Source());
    // Every k and v head its own, so that all shapes are multiples of 32.
    nlohmann::json config = {{"num_key_value_heads", 4}};
    config.update(changes);
    test::MakeTinyModel(architecture, config).Write(Source());
    std::ofstream(Source() + "/tokenizer.json") << "{\"not\": \"parsed\" }\n";
    std::ofstream(Source() + "/generation_config.json") << "{}";
    std::ofstream(Source() + "/modeling_evil.py") << "import os";
    checkpoint_ = Checkpoint::Open(Source());
    grid_ = grid;
    for (int i = 0; i < checkpoint_->config().num_layers; ++i) blocks_.push_back(Quantize(i));
  }

  QuantizedBlock Quantize(int index) const {
    const Block block = LoadBlock(*checkpoint_, index);
    QuantizedBlock quantized;
    quantized.index = index;
    for (const Linear& linear : block.linears) {
      quantized.linears.push_back(
          QuantizeNearest(linear.name, linear.weight, linear.bias, grid_, ScaleDtype()));
    }
    const std::string prefix = checkpoint_->BlockPrefix(index);
    for (const Norm& norm : block.norms) {
      const auto add = [&](const std::string& key, const at::Tensor& value) {
        if (value.defined()) {
          quantized.dense[key] = value.to(checkpoint_->Info(prefix + key).dtype);
        }
      };
      add(norm.name + ".weight", norm.weight);
      add(norm.name + ".bias", norm.bias);
    }
    return quantized;
  }

  at::ScalarType ScaleDtype() const { return ScaleDtypeFor(checkpoint_->storage_dtype()); }
  std::string Source() const { return dir_.File("source"); }
  // The parameter's output of the open checkpoint; returns its folder.
  std::string Written(const Layout& layout) {
    const std::string folder = Folder(GetParam());
    Exporter exporter(*checkpoint_, layout, folder);
    Write(exporter);
    return folder;
  }

  std::string Folder(const std::string& name) const {
    std::filesystem::create_directories(dir_.File(name));
    return dir_.File(name);
  }

  std::unique_ptr<Layout> MakeLayout(const std::string& format) const {
    for (const OutputFormatRow& row : OutputFormats()) {
      if (row.name == format) return row.create(grid_, ScaleDtype());
    }
    return nullptr;
  }

  OutputSummary Write(Exporter& exporter) const {
    for (const QuantizedBlock& block : blocks_) exporter.Add(block);
    return exporter.Finish();
  }

  BlockReader Reader() const {
    return [this](int index) { return blocks_.at(index); };
  }

  test::TempDir dir_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  GridSpec grid_;
  std::vector<QuantizedBlock> blocks_;
};

// The grid nearest to `grid` that a format can hold.
GridSpec Held(GridSpec grid, const std::string& format) {
  if (format == "awq") grid.bits = 4;
  if (format == "int4-carrier") grid.bits = std::min(grid.bits, 3);
  if (format == "gptq-v1") grid.zero_at_least_one = true;
  return grid;
}

void FlipBit(const std::string& path, int64_t from_end) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-from_end, std::ios::end);
  const char byte = static_cast<char>(file.get());
  file.seekp(-from_end, std::ios::end);
  file.put(static_cast<char>(byte ^ 1));
}

TEST_P(ExporterTest, WritesAndVerifiesEveryArchitecture) {
  for (const char* architecture : {"llama", "qwen2", "qwen3", "opt"}) {
    blocks_.clear();
    std::filesystem::remove_all(Source());
    Open(architecture, Held({3, 8, false}, GetParam()));
    const auto layout = MakeLayout(GetParam());
    Exporter exporter(*checkpoint_, *layout, Folder(GetParam() + architecture));
    const OutputSummary summary = Write(exporter);
    EXPECT_GT(summary.bytes, OutputBytes(PlanTensors(*checkpoint_), *layout));
    EXPECT_FALSE(summary.compatibility.empty());
    EXPECT_NO_THROW(exporter.Verify(Reader())) << architecture;
  }
}

TEST_P(ExporterTest, VerifySeesOneFlippedBitAnywhere) {
  Open("llama", Held({4, 8, false}, GetParam()));
  const auto layout = MakeLayout(GetParam());
  const std::string folder = Folder(GetParam());
  Exporter exporter(*checkpoint_, *layout, folder);
  Write(exporter);
  const std::string path = folder + "/" + std::string(layout->file_stem()) + ".safetensors";
  const auto data = static_cast<int64_t>(OutputBytes(PlanTensors(*checkpoint_), *layout));
  for (int64_t at = 1; at <= data; at += data / 97 + 1) {
    FlipBit(path, at);
    const EngineError error = test::ErrorOf([&] { exporter.Verify(Reader()); });
    EXPECT_EQ(error.reason, "OUTPUT_VERIFICATION_FAILED") << at << ": " << error.what();
    FlipBit(path, at);
  }
  EXPECT_NO_THROW(exporter.Verify(Reader()));
}

TEST_P(ExporterTest, VerifySeesOtherIntegers) {
  Open("llama", Held({4, 8, true}, GetParam()));
  const auto layout = MakeLayout(GetParam());
  Exporter exporter(*checkpoint_, *layout, Folder(GetParam()));
  Write(exporter);
  const auto changed = [&](int index) {
    QuantizedBlock block = blocks_.at(index);
    at::Tensor codes = block.linears.back().codes.clone();
    codes[0][0] = (codes[0][0].item<int>() + 1) % 4;
    block.linears.back().codes = codes;
    return block;
  };
  EXPECT_THROW(exporter.Verify(changed), EngineError);
}

TEST_P(ExporterTest, SplitsIntoShardsWithAnIndex) {
  Open("llama", Held({2, -1, false}, GetParam()));
  const auto layout = MakeLayout(GetParam());
  const std::string folder = Folder(GetParam());
  Exporter exporter(*checkpoint_, *layout, folder, 2000);
  Write(exporter);
  EXPECT_NO_THROW(exporter.Verify(Reader()));
  const std::string stem(layout->file_stem());
  EXPECT_FALSE(IsRegularFile(folder + "/" + stem + ".safetensors"));
  const auto index = nlohmann::json::parse(
      ReadFile(folder + "/" + stem + ".safetensors.index.json", 1 << 20, "TEST"));
  EXPECT_EQ(index.at("metadata").at("total_size").get<uint64_t>(),
            OutputBytes(PlanTensors(*checkpoint_), *layout));
  for (const auto& [name, shard] : index.at("weight_map").items()) {
    EXPECT_TRUE(IsRegularFile(folder + "/" + shard.get<std::string>())) << name;
  }
}

TEST_P(ExporterTest, KeepsConfigAndTokenizerDropsCode) {
  Open("llama", Held({4, 8, false}, GetParam()),
       {{"auto_map", {{"AutoModel", "modeling_evil.Evil"}}}, {"unusual_key", {1, 2.5, "x"}}});
  const auto layout = MakeLayout(GetParam());
  const std::string folder = Folder(GetParam());
  Exporter exporter(*checkpoint_, *layout, folder);
  Write(exporter);
  const auto before = nlohmann::json::parse(checkpoint_->config().json);
  auto after = nlohmann::json::parse(ReadFile(folder + "/config.json", 1 << 20, "TEST"));
  EXPECT_EQ(after.contains("quantization_config"), GetParam() != "dense");
  after.erase("quantization_config");
  if (layout->Specs({"m", {32, 32}}).back().name == "m.g_idx" || GetParam() == "awq") {
    EXPECT_EQ(after.at("torch_dtype"), "float16");
    after.erase("torch_dtype");
  }
  after["auto_map"] = before.at("auto_map");
  EXPECT_EQ(after, before);
  EXPECT_EQ(exporter.warnings().size(), 1u);
  EXPECT_EQ(ReadFile(folder + "/tokenizer.json", 1 << 20, "TEST"), "{\"not\": \"parsed\" }\n");
  EXPECT_TRUE(IsRegularFile(folder + "/generation_config.json"));
  EXPECT_FALSE(IsRegularFile(folder + "/modeling_evil.py"));
}

TEST_P(ExporterTest, UnpackGivesTheDenseOutput) {
  for (const bool symmetric : {false, true}) {
    blocks_.clear();
    std::filesystem::remove_all(Source());
    std::filesystem::remove_all(Folder("unpacked"));
    Open("llama", Held({4, 8, symmetric}, GetParam()));
    for (const std::string& format : {GetParam(), std::string("dense")}) {
      const auto layout = MakeLayout(format);
      Exporter exporter(*checkpoint_, *layout, Folder(format));
      Write(exporter);
    }
    if (GetParam() == "dense") return;  // there is nothing to unpack
    UnpackFolder(Folder(GetParam()), Folder("unpacked"));
    const OutputReader dense(Folder("dense"), "model");
    const OutputReader unpacked(Folder("unpacked"), "model");
    ASSERT_EQ(unpacked.names(), dense.names());
    for (const std::string& name : dense.names()) {
      EXPECT_TRUE(at::equal(unpacked.Read(name), dense.Read(name))) << name;
    }
  }
}

// The same numbers in shapes that do not fit the other parts of a linear.
std::vector<at::Tensor> Misshapen(const at::Tensor& tensor) {
  std::vector<at::Tensor> shapes = {tensor.unsqueeze(0)};
  if (tensor.dim() > 1) shapes.push_back(tensor.flatten());
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    shapes.push_back(tensor.narrow(i, 0, tensor.size(i) - 1));
  }
  return shapes;
}

// A damaged folder is its user's to mend: never a bug of ours or of the disk.
TEST_P(ExporterTest, PartsThatDoNotFitAreAnInvalidCheckpoint) {
  if (GetParam() == "dense") return;
  Open("llama", Held({4, 8, false}, GetParam()));
  const auto layout = MakeLayout(GetParam());
  const std::string folder = Written(*layout);
  const std::string stem(layout->file_stem());
  const std::string module = checkpoint_->BlockPrefix(0) + "self_attn.q_proj";
  int damaged = 0;
  for (const TensorSpec& spec : layout->Specs({module, {32, 32}})) {
    const at::Tensor whole = OutputReader(folder, stem).Read(spec.name);
    for (const at::Tensor& value : Misshapen(whole)) {
      test::ReplaceTensors(folder, stem, {{spec.name, value}});
      ++damaged;
      const EngineError error = test::ErrorOf([&] { UnpackFolder(folder, Folder("unpacked")); });
      EXPECT_EQ(error.reason, "INVALID_CHECKPOINT")
          << spec.name << " " << value.sizes() << ": " << error.what();
      if (GetParam() != "quantry") continue;
      EXPECT_EQ(test::ErrorOf([&] { ContainerReader(folder).Read(module); }).reason,
                "INVALID_CHECKPOINT")
          << spec.name << " " << value.sizes();
    }
    test::ReplaceTensors(folder, stem, {{spec.name, whole}});
  }
  EXPECT_GE(damaged, 10);
  EXPECT_NO_THROW(UnpackFolder(folder, Folder("unpacked")));
}

// The output would replace what it is made of.
TEST_P(ExporterTest, UnpackWantsAnotherFolder) {
  Open("llama", Held({4, 8, false}, GetParam()));
  const auto layout = MakeLayout(GetParam());
  const std::string folder = Written(*layout);
  const std::string config = ReadFile(folder + "/config.json", 1 << 20, "TEST");
  const std::string link = dir_.File("link");
  std::filesystem::create_directory_symlink(folder, link);
  for (const std::string& output : {folder, folder + "/", folder + "/../" + GetParam(), link,
                                    folder + "/dense", link + "/a/b"}) {
    const EngineError error = test::ErrorOf([&] { UnpackFolder(folder, output); });
    EXPECT_EQ(error.reason, "INVALID_SPEC") << output << ": " << error.what();
    EXPECT_TRUE(test::Mentions(error, "another folder than input")) << error.what();
  }
  EXPECT_EQ(ReadFile(folder + "/config.json", 1 << 20, "TEST"), config);
  EXPECT_FALSE(std::filesystem::exists(folder + "/dense"));
  if (GetParam() == "dense") return;  // there is nothing to unpack
  EXPECT_NO_THROW(UnpackFolder(folder, folder + "-dense"));
  const EngineError again = test::ErrorOf([&] { UnpackFolder(folder, folder + "-dense"); });
  EXPECT_EQ(again.reason, "INVALID_SPEC");
  EXPECT_TRUE(test::Mentions(again, "without a model") && test::Mentions(again, "remove it"))
      << again.what();
}

TEST_P(ExporterTest, ScalesThatAreNotFiniteAreRefused) {
  if (GetParam() == "dense" || GetParam() == "int4-carrier") return;
  Open("llama", Held({4, 8, false}, GetParam()));
  const auto layout = MakeLayout(GetParam());
  const std::string folder = Written(*layout);
  const std::string stem(layout->file_stem());
  const std::string module = checkpoint_->BlockPrefix(0) + "self_attn.q_proj";
  const std::string name =
      module + (GetParam() == "compressed-tensors" ? ".weight_scale" : ".scales");
  at::Tensor scales = OutputReader(folder, stem).Read(name).clone();
  const at::Tensor whole = scales.clone();
  scales.view({-1})[3] = std::numeric_limits<double>::infinity();
  for (const auto& [value, why] :
       {std::pair<at::Tensor, const char*>{scales, " holds NaN or infinity"},
        {whole.to(at::kFloat8_e4m3fn), ", wanted F16, BF16 or F32"},
        {whole.to(at::kInt), ", wanted F16, BF16 or F32"}}) {
    test::ReplaceTensors(folder, stem, {{name, value}});
    const auto expect_refused = [&](const auto& read) {
      const EngineError error = test::ErrorOf(read);
      EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
      EXPECT_TRUE(test::Mentions(error, name) && test::Mentions(error, why)) << error.what();
    };
    expect_refused([&] { UnpackFolder(folder, Folder("unpacked")); });
    if (GetParam() == "quantry") expect_refused([&] { ContainerReader(folder).Read(module); });
  }
}

// Folders of others, whose columns or groups are not as they are written here: taken for ours,
// most of their weights would be wrong, and of the right shape.
TEST_P(ExporterTest, UnpackRefusesOrdersAndGroupsItDoesNotKnow) {
  if (GetParam() != "compressed-tensors") return;
  Open("llama", Held({4, 8, true}, GetParam()));
  const auto layout = MakeLayout(GetParam());
  const std::string folder = Written(*layout), path = folder + "/config.json";
  const auto whole = nlohmann::json::parse(ReadFile(path, 1 << 20, "TEST"));
  const auto unpack_with = [&](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json config = whole;
    change(config["quantization_config"]["config_groups"]);
    WriteFileAtomically(path, config.dump());
    std::filesystem::remove_all(Folder("unpacked"));
    UnpackFolder(folder, Folder("unpacked"));
  };
  const auto ordered = [](const nlohmann::json& order) {
    return [order](nlohmann::json& groups) { groups["group_0"]["weights"]["actorder"] = order; };
  };
  for (const char* order : {"static", "weight"}) EXPECT_NO_THROW(unpack_with(ordered(order)));
  for (const nlohmann::json& order : {nlohmann::json("group"), nlohmann::json(true)}) {
    const EngineError error = test::ErrorOf([&] { unpack_with(ordered(order)); });
    EXPECT_EQ(error.reason, "INVALID_CHECKPOINT") << error.what();
    EXPECT_TRUE(test::Mentions(error, "actorder")) << error.what();
  }
  const EngineError two = test::ErrorOf(
      [&] { unpack_with([](nlohmann::json& groups) { groups["group_1"] = groups["group_0"]; }); });
  EXPECT_TRUE(test::Mentions(two, "2 config_groups")) << two.what();
  const EngineError floats = test::ErrorOf([&] {
    unpack_with([](nlohmann::json& groups) { groups["group_0"]["weights"]["type"] = "float"; });
  });
  EXPECT_TRUE(test::Mentions(floats, "float")) << floats.what();
}

// What a file says of its linears counts, not config.json beside it.
TEST_P(ExporterTest, UnpackTakesEachLinearsOwnGrid) {
  if (GetParam() != "quantry") return;
  Open("llama", Held({4, 8, false}, GetParam()));
  const std::string folder = Written(*MakeLayout(GetParam())), path = folder + "/config.json";
  UnpackFolder(folder, Folder("right"));
  auto config = nlohmann::json::parse(ReadFile(path, 1 << 20, "TEST"));
  config["quantization_config"]["symmetric"] = true;
  WriteFileAtomically(path, config.dump());
  UnpackFolder(folder, Folder("unpacked"));
  const OutputReader right(Folder("right"), "model"), unpacked(Folder("unpacked"), "model");
  for (const std::string& name : right.names()) {
    EXPECT_TRUE(at::equal(unpacked.Read(name), right.Read(name))) << name;
  }
}

// config.json names a schema that this engine knows, the file a newer one.
TEST_P(ExporterTest, UnpackReadsTheFilesOwnSchema) {
  if (GetParam() != "quantry") return;
  Open("llama", Held({4, 8, false}, GetParam()));
  const auto layout = MakeLayout(GetParam());
  const std::string folder = Written(*layout);
  const std::string known(kGridContainerSchema), other(kMixedContainerSchema);
  for (const std::string& schema : {std::string("quantry.container.v9"), other}) {
    test::Redescribe(folder, [&](nlohmann::json& description) { description["schema"] = schema; });
    const EngineError error = test::ErrorOf([&] { UnpackFolder(folder, Folder("unpacked")); });
    EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
    EXPECT_TRUE(test::Mentions(error, schema)) << error.what();
    EXPECT_TRUE(test::Mentions(error, known)) << error.what();
  }
}

// A grid may say that it is one; what says that it is something else is not read as one.
TEST_P(ExporterTest, AKindThatIsNoGridIsRefused) {
  if (GetParam() != "quantry") return;
  Open("llama", Held({4, 8, false}, GetParam()));
  const auto layout = MakeLayout(GetParam());
  const std::string folder = Written(*layout);
  const std::string module = checkpoint_->BlockPrefix(0) + "self_attn.q_proj";
  const auto set_kind = [&](const std::string& kind) {
    test::Redescribe(folder, [&](nlohmann::json& description) {
      description["linears"][module]["kind"] = kind;
    });
  };
  set_kind("grid");
  EXPECT_NO_THROW(ContainerReader(folder).Read(module));
  EXPECT_NO_THROW(UnpackFolder(folder, Folder("unpacked")));
  set_kind("ternary");
  for (const EngineError& error :
       {test::ErrorOf([&] { ContainerReader(folder).Read(module); }),
        test::ErrorOf([&] { UnpackFolder(folder, Folder("unpacked")); })}) {
    EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
    EXPECT_TRUE(test::Mentions(error, module + ": wanted the kind \"grid\"")) << error.what();
    EXPECT_TRUE(test::Mentions(error, "got \"ternary\"")) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, ExporterTest,
                         ::testing::Values("compressed-tensors", "dense", "quantry", "gptq",
                                           "gptq-v1", "awq", "int4-carrier"),
                         [](const auto& param_info) {
                           std::string name = param_info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

using CompressedTensorsTest = ExporterTest;

TEST_F(CompressedTensorsTest, TensorsAndConfigAsReadersWantThem) {
  Open("llama", {3, -1, false});
  const auto layout = MakeLayout("compressed-tensors");
  const std::string folder = Folder("ct");
  Exporter exporter(*checkpoint_, *layout, folder);
  Write(exporter);
  const OutputReader reader(folder, "model");
  const std::string module = checkpoint_->BlockPrefix(0) + "self_attn.q_proj";
  const auto& linear = blocks_[0].linears[0];
  const int64_t rows = linear.codes.size(0);
  const int64_t columns = linear.codes.size(1);
  EXPECT_EQ(reader.Read(module + ".weight_packed").sizes(),
            (std::vector<int64_t>{rows, (columns * 3 + 31) / 32}));
  EXPECT_EQ(reader.Read(module + ".weight_scale").sizes(), (std::vector<int64_t>{rows, 1}));
  EXPECT_EQ(reader.Read(module + ".weight_zero_point").sizes(),
            (std::vector<int64_t>{(rows * 3 + 31) / 32, 1}));
  EXPECT_TRUE(
      at::equal(reader.Read(module + ".weight_shape"), at::tensor({rows, columns}, at::kLong)));
  EXPECT_FALSE(reader.Has(module + ".weight"));
  const auto config = nlohmann::json::parse(ReadFile(folder + "/config.json", 1 << 20, "TEST"))
                          .at("quantization_config");
  const auto& group = config.at("config_groups").at("group_0");
  EXPECT_EQ(config.at("ignore"), nlohmann::json::array({"lm_head"}));
  EXPECT_EQ(group.at("targets"), nlohmann::json::array({"Linear"}));
  EXPECT_EQ(group.at("weights").at("strategy"), "channel");
  EXPECT_TRUE(group.at("weights").at("group_size").is_null());
  EXPECT_EQ(group.at("weights").at("zp_dtype"), "torch.int8");
}

TEST_F(CompressedTensorsTest, UnpackRefusesWhatIsNoOutput) {
  Open("llama", {4, 8, false});
  EXPECT_EQ(test::ErrorOf([&] { UnpackFolder(Source(), Folder("u")); }).reason,
            "INVALID_CHECKPOINT");
}

// What AutoGPTQ writes: a bias for every linear.
TEST_F(CompressedTensorsTest, UnpackDropsBiasesOfZerosWhereTheModelHasNone) {
  const auto unpacked_with = [&](const std::string& architecture, const std::string& linear,
                                 double bias) {
    blocks_.clear();
    std::filesystem::remove_all(dir_.path());
    Open(architecture, {4, 8, false});
    const auto layout = MakeLayout("gptq");
    Exporter exporter(*checkpoint_, *layout, Folder("gptq"));
    Write(exporter);
    const std::string name = checkpoint_->BlockPrefix(0) + linear + ".bias";
    test::ReplaceTensors(Folder("gptq"), "model", {{name, at::full({32}, bias, at::kHalf)}});
    UnpackFolder(Folder("gptq"), Folder("unpacked"));
    return OutputReader(Folder("unpacked"), "model").Has(name);
  };
  EXPECT_FALSE(unpacked_with("llama", "self_attn.q_proj", 0));
  EXPECT_NO_THROW(Checkpoint::Open(Folder("unpacked")));
  EXPECT_TRUE(unpacked_with("llama", "self_attn.q_proj", 0.5)) << "it says something";
  EXPECT_TRUE(unpacked_with("opt", "self_attn.q_proj", 0)) << "the model has one";
  EXPECT_NO_THROW(Checkpoint::Open(Folder("unpacked")));
}

TEST(ContainerReaderTest, AMethodThatIsNoTextIsNotOurs) {
  const test::TempDir dir;
  for (const char* quantization : {"7", R"({"quant_method": 7})", R"({"quant_method": "gptq"})"}) {
    std::ofstream(dir.File("config.json"), std::ios::trunc)
        << R"({"quantization_config": )" << quantization << "}";
    EXPECT_FALSE(IsQuantryContainer(dir.path())) << quantization;
  }
}

TEST(ContainerReaderTest, AnArtifactsFolderNamesItsOutputs) {
  const test::TempDir dir;
  const std::string artifact = dir.File("artifact");
  std::filesystem::create_directories(artifact + "/quantry");
  std::ofstream(artifact + "/quantry/config.json") << "{}";
  std::ofstream(artifact + "/manifest.json") << "{}";
  for (const EngineError& error :
       {test::ErrorOf([&] { IsQuantryContainer(artifact); }),
        test::ErrorOf([&] { UnpackFolder(artifact, dir.File("unpacked")); })}) {
    EXPECT_TRUE(test::Mentions(error, "give one of its outputs: " + artifact + "/quantry"))
        << error.what();
  }
}

TEST(ManifestCheckTest, LooksAtHashesOfTheFolderAlone) {
  const test::TempDir dir;
  std::filesystem::create_directories(dir.File("out"));
  std::ofstream(dir.File("out/a")) << "a";
  const auto check = [&](const std::string& files) {
    std::ofstream(dir.File("manifest.json"), std::ios::trunc) << R"({"files": )" << files << "}";
    CheckAgainstManifest(dir.File("out"));
  };
  const std::string none(64, '0');
  const std::string of_a = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
  EXPECT_NO_THROW(check(R"([{"path": "out/a", "sha256": ")" + of_a + R"("}])"));
  for (const std::string name : {"out/a", "out/b"}) {
    const std::string wrong = R"([{"path": ")" + name + R"(", "sha256": ")" + none + R"("}])";
    EXPECT_EQ(test::ErrorOf([&] { check(wrong); }).reason, "INVALID_CHECKPOINT") << name;
  }
  // Another program's list.
  EXPECT_NO_THROW(check(R"([{"path": 7}, {"path": "out/a", "sha256": 7}, {"path": null}, 7])"));
  EXPECT_NO_THROW(check(R"({"out/a": {"path": ["out/a"]}})"));
}

// A stack of brackets in an index must not become one of calls.
TEST(OutputReaderTest, RefusesIndicesThatAreNone) {
  const test::TempDir dir;
  constexpr size_t kDeep = 200'000;
  const std::string stack = std::string(kDeep, '[') + std::string(kDeep, ']');
  for (const std::string& index :
       {std::string("{"), std::string("[]"), std::string("{}"),
        std::string(R"({"weight_map": "a"})"), std::string(R"({"weight_map": {}})"),
        std::string(R"({"weight_map": {"t": 1}})"),
        std::string(R"({"weight_map": {"t": "../a.safetensors"}})"),
        R"({"weight_map": )" + stack + "}"}) {
    std::ofstream(dir.File("model.safetensors.index.json")) << index;
    const EngineError error = test::ErrorOf([&] { OutputReader(dir.path(), "model"); });
    EXPECT_EQ(error.reason, "INVALID_CHECKPOINT") << index.substr(0, 60);
    EXPECT_TRUE(test::Mentions(error, "index.json")) << error.what();
  }
}

TEST(OutputReaderTest, RefusesTwoSetsOfFiles) {
  const test::TempDir dir;
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
    std::ofstream(dir.File(name)) << "{}";
  }
  const EngineError error = test::ErrorOf([&] { OutputReader(dir.path(), "model"); });
  EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
  EXPECT_TRUE(test::Mentions(error, "holds the same tensors twice")) << error.what();
}

TEST_F(CompressedTensorsTest, WritesUsualNamesWhateverTheSourceHas) {
  std::filesystem::create_directories(Source());
  test::TinyModel model = test::MakeTinyModel("llama", {{"tie_word_embeddings", true}});
  const auto embedding = model.tensors.extract("model.embed_tokens.weight");
  ASSERT_FALSE(embedding.empty());
  model.tensors.erase("lm_head.weight");
  model.tensors["lm_head.weight"] = embedding.mapped();
  model.Write(Source());
  checkpoint_ = Checkpoint::Open(Source());
  for (const PlannedTensor& tensor : PlanTensors(*checkpoint_)) {
    EXPECT_EQ(tensor.written.rfind("model.", 0), 0u) << tensor.written;
    EXPECT_EQ(tensor.written.find(".."), std::string::npos) << tensor.written;
  }
}

TEST_F(CompressedTensorsTest, CountsBits) {
  Open("llama", {4, 8, false});
  const auto layout = MakeLayout("compressed-tensors");
  const BitAccounting bits = CountBits(*checkpoint_, PlanTensors(*checkpoint_), *layout, 1000);
  EXPECT_DOUBLE_EQ(bits.linears, 4 + (16 + 4) / 8.0);
  EXPECT_DOUBLE_EQ(bits.file, 8000.0 / static_cast<double>(checkpoint_->parameters()));
}

}  // namespace
}  // namespace quantry::engine
