// Whole jobs on tiny random models: every method of the catalogue, on the CPU
// and, where there is one, on a GPU.
#include "worker/engine/pipeline/run.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <tuple>
#include <utility>

#include "worker/engine/base/file.h"
#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/evaluation/evaluator.h"
#include "worker/engine/export/container_reader.h"
#include "worker/engine/export/output_reader.h"
#include "worker/engine/methods/catalog.h"
#include "worker/engine/model/safetensors.h"
#include "worker/engine/nn/products.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/pipeline/block_file.h"
#include "worker/engine/pipeline/inputs.h"
#include "worker/engine/pipeline/quote.h"
#include "worker/engine/pipeline/streams.h"
#include "worker/engine/testing/devices.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"
#include "worker/engine/testing/tiny_model.h"

namespace quantry::engine {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kLength = 16;
constexpr char kStop[] = "STOPPED_BY_TEST";

struct MethodCase {
  const char* name;
  const char* architecture;
  const char* method;  // `method` of the job
  bool preprocessing = false;
};

// Short, but every step of each method runs.
const MethodCase kCases[] = {
    {"rtn", "llama", R"({"rtn": {"grid": {"bits": 3, "group_size": 16}}})"},
    {"awq", "llama", R"({"awq": {"grid": {"bits": 3, "group_size": 16}, "scale_grid_points": 4}})"},
    {"awq_activations", "qwen3",
     R"({"awq": {"grid": {"bits": 4, "group_size": -1}, "scale_grid_points": 4,
                 "activations": {"bits": 8}}})"},
    {"tesseraq", "llama",
     R"({"tesseraq": {"grid": {"bits": 2, "group_size": 16}, "stages": 2, "steps_per_stage": 3,
                      "batch_size": 2, "dense_learning_rate": 0.001, "final_steps": 2,
                      "input_mixing": 0.5, "model_tuning_steps": 3,
                      "model_tuning_dense_rate": 0.001, "rounding_reach": 2,
                      "held_out_samples": 2}})"},
    {"tesseraq_signround", "llama",
     R"({"tesseraq": {"grid": {"bits": 2, "group_size": 16}, "init": "INIT_SIGNROUND", "stages": 2,
                      "steps_per_stage": 2, "batch_size": 2}})"},
    {"tesseraq_plus", "llama",
     R"({"tesseraq": {"recipe": "tesseraq-plus", "grid": {"bits": 2, "group_size": 16},
                      "stages": 2, "steps_per_stage": 2, "batch_size": 2,
                      "model_tuning_steps": 2}})"},
    {"tesseraq_quarot", "llama",
     R"({"tesseraq": {"grid": {"bits": 4, "group_size": -1}, "init": "INIT_QUAROT",
                      "activations": {"bits": 4}, "stages": 2, "steps_per_stage": 2,
                      "batch_size": 2}})"},
    {"tesseraq_omniquant", "llama",
     R"({"tesseraq": {"grid": {"bits": 3, "group_size": 16}, "init": "INIT_OMNIQUANT", "stages": 2,
                      "steps_per_stage": 2, "batch_size": 2}})"},
    {"tesseraq_bfloat16", "qwen3",
     R"({"tesseraq": {"grid": {"bits": 2, "group_size": 16}, "stages": 2, "steps_per_stage": 3,
                      "batch_size": 2, "model_tuning_steps": 2,
                      "compute_dtype": "COMPUTE_DTYPE_BFLOAT16"}})"},
    {"ptq161", "opt", R"({"ptq161": {"epochs": 2}})"},
    {"ptq161_bfloat16", "opt",
     R"({"ptq161": {"epochs": 1, "learn_rounding": true, "rounding_stages": 2, "rounding_steps": 2,
                    "compute_dtype": "COMPUTE_DTYPE_BFLOAT16"}})"},
    {"ptq161_plus", "llama",
     R"({"ptq161": {"recipe": "ptq161-plus", "epochs": 1, "rounding_stages": 2,
                    "rounding_steps": 3}})"},
    {"ptq161_restored", "opt", R"({"ptq161": {"epochs": 1}})", true},
    {"restore", "llama", R"({"restore": {"first_pass": {"epochs": 1}}})", true},
    {"gptq", "llama",
     R"({"gptq": {"grid": {"bits": 3, "group_size": 16}, "act_order": true,
                  "true_sequential": true}})"},
    {"omniquant", "opt",
     R"({"omniquant": {"grid": {"bits": 3, "group_size": -1}, "epochs": 2,
                       "activations": {"bits": 6}}})"},
    {"quarot", "llama",
     R"({"quarot": {"grid": {"bits": 4, "group_size": -1}, "activations": {"bits": 4},
                    "gptq": true}})"},
    {"signround", "qwen2",
     R"({"signround": {"grid": {"bits": 3, "group_size": 16}, "iterations": 4, "batch_size": 2}})"},
    {"billm", "llama", R"({"billm": {}})"},
    {"pbllm", "llama", R"({"pbllm": {}})"},
};

json Tokens(int count, uint64_t seed) {
  Random random(seed);
  json ids = json::array();
  for (int i = 0; i < count; ++i) ids.push_back(random.Below(50));
  return ids;
}

// Contents of every file below `dir`, by name.
std::map<std::string, std::string> FilesBelow(const std::string& dir) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    if (!entry.is_regular_file()) continue;
    files[fs::relative(entry.path(), dir)] = ReadFile(entry.path(), uint64_t{64} << 20, "TEST");
  }
  return files;
}

// A model, texts, and jobs on them in folders of their own.
class Bench {
 public:
  // `config`: what config.json says otherwise than tiny models' own.
  explicit Bench(const MethodCase& of, const json& config = json::object()) : of_(of) {
    test::MakeTinyModel(of.architecture, config).Write(dir_.File("model"));
    Write("calibration.json", Tokens(8 * kLength, 1));
    Write("evaluation.json", Tokens(5 * kLength, 2));
    Write("corpus.json", Tokens(12 * kLength, 3));
  }

  json JobJson(const std::string& name) const {
    const auto text = [&](const char* file) {
      return json{{"path", dir_.File(file)}, {"format", "TEXT_FORMAT_TOKEN_IDS"}};
    };
    json job = {
        {"model_dir", dir_.File("model")},
        {"output_dir", dir_.File(name + "/out")},
        {"checkpoint_dir", CheckpointDir(name)},
        {"method", json::parse(of_.method)},
        {"calibration",
         {{"text", text("calibration.json")}, {"samples", 8}, {"sequence_length", kLength}}},
        {"evaluation", {{"text", text("evaluation.json")}, {"windows", 3}}},
        {"threads", 1}};
    const auto& formats = FindMethod(job["method"].begin().key())->output_formats;
    const bool container = std::find(formats.begin(), formats.end(), "quantry") != formats.end();
    for (const char* format : {"OUTPUT_FORMAT_QUANTRY", "OUTPUT_FORMAT_DENSE"}) {
      if (container || format == std::string("OUTPUT_FORMAT_DENSE")) {
        job["outputs"].push_back({{"format", format}});
      }
    }
    if (of_.preprocessing) {
      job["preprocessing"] = {{"text", text("corpus.json")},
                              {"lora", {{"steps", 6}, {"rank", 4}, {"learning_rate", 0.01}}}};
    }
    return job;
  }

  // Runs the job; `stop` ends it when it says so at a look at the clock, half a
  // minute after the last. Returns its events.
  std::vector<json> RunAs(const json& job, const at::Device& device,
                          const std::function<bool()>& stop = {}) const {
    fs::create_directories(fs::path(job.at("output_dir").get<std::string>()).parent_path());
    const std::string path = job.at("output_dir").get<std::string>() + ".events";
    const int fd = open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    double now = 0;
    const Seconds clock = [&] {
      if (stop && stop()) throw EngineError(FailureClass::kBug, kStop, "stopped by the test");
      return now += 31;
    };
    try {
      EventWriter events(fd);
      RunJobOn(device, ParseJob(job), events, clock);
    } catch (const EngineError& error) {
      if (error.reason != kStop) ADD_FAILURE() << error.reason << ": " << error.what();
    }
    close(fd);
    return Events(path);
  }

  std::vector<json> Run(const std::string& name, const at::Device& device,
                        const std::function<bool()>& stop = {}) const {
    return RunAs(JobJson(name), device, stop);
  }

  std::string CheckpointDir(const std::string& name) const {
    return dir_.File(name + "/checkpoint");
  }
  bool Has(const std::string& name, const std::string& file) const {
    return IsRegularFile(CheckpointDir(name) + "/" + file);
  }
  json Manifest(const std::string& name) const {
    return json::parse(ReadFile(dir_.File(name + "/out/manifest.json"), 1 << 24, "TEST"));
  }
  // The artifact without its measured times.
  std::map<std::string, std::string> Artifact(const std::string& name) const {
    auto files = FilesBelow(dir_.File(name + "/out"));
    files.erase("manifest.json");
    return files;
  }
  std::string File(const std::string& name) const { return dir_.File(name); }

 private:
  void Write(const std::string& name, const json& content) const {
    std::ofstream(dir_.File(name)) << content.dump();
  }
  static std::vector<json> Events(const std::string& path) {
    std::istringstream lines(ReadFile(path, 1 << 24, "TEST"));
    std::vector<json> events;
    for (std::string line; std::getline(lines, line);) events.push_back(json::parse(line));
    return events;
  }

  MethodCase of_;
  test::TempDir dir_;
};

int ResumedBlocks(const std::vector<json>& events) {
  for (const json& event : events) {
    if (event.contains("started")) return event["started"].value("resumed_blocks", 0);
  }
  return -1;
}

// How many events tell that figure of the work in progress.
int TimesTold(const std::vector<json>& events, const std::string& figure) {
  int told = 0;
  for (const json& event : events) {
    told += event.contains("progress") && event["progress"].contains("metrics") &&
            event["progress"]["metrics"].contains(figure);
  }
  return told;
}

void ExpectSameArtifact(const Bench& bench, const std::string& a, const std::string& b) {
  const auto first = bench.Artifact(a), second = bench.Artifact(b);
  ASSERT_FALSE(first.empty());
  ASSERT_EQ(first.size(), second.size());
  for (const auto& [name, content] : first) {
    EXPECT_TRUE(second.count(name) != 0 && second.at(name) == content) << name << " differs";
  }
}

class EveryMethodTest : public ::testing::TestWithParam<std::tuple<MethodCase, const char*>> {
 protected:
  void SetUp() override { QUANTRY_TAKE_DEVICE(device_, std::get<1>(GetParam())); }

  const MethodCase& Case() const { return std::get<0>(GetParam()); }
  at::Device device_ = at::kCPU;
};

std::string NameOf(const ::testing::TestParamInfo<EveryMethodTest::ParamType>& info) {
  return std::string(std::get<0>(info.param).name) + "_" + std::get<1>(info.param);
}

INSTANTIATE_TEST_SUITE_P(Catalog, EveryMethodTest,
                         ::testing::Combine(::testing::ValuesIn(kCases), test::kDevices), NameOf);

// Quantize, pack, verify, evaluate; the figures are the host's.
TEST_P(EveryMethodTest, RunsToAVerifiedArtifact) {
  const Bench bench(Case());
  const std::vector<json> events = bench.Run("whole", device_);
  ASSERT_TRUE(!events.empty() && events.back().contains("completed"));
  const json manifest = bench.Manifest("whole");
  for (const json& output : manifest["outputs"]) EXPECT_TRUE(output["verified"].get<bool>());
  EXPECT_EQ(manifest["blocks"].size(), 2U);
  const json& perplexity = manifest["quality"]["perplexity"];
  EXPECT_EQ(perplexity["windows"].get<int>(), 3);  // of five
  EXPECT_EQ(perplexity["tokens"].get<int>(), 3 * (kLength - 1));
  if (device_.is_cpu()) return;
  bench.Run("host", at::kCPU);
  const json wanted = bench.Manifest("host")["quality"]["perplexity"];
  const auto near = [&](const char* which, double share) {
    EXPECT_NEAR(perplexity[which].get<double>(), wanted[which].get<double>(),
                share * wanted[which].get<double>())
        << which;
  };
  near("dense", 1e-4);
  near("quantized", 0.05);  // a rounding may fall to the other side
}

// Stopped after a block, the same command gives the same bytes.
TEST_P(EveryMethodTest, StoppedAfterABlockItGoesOnToTheSameBytes) {
  const Bench bench(Case());
  bench.Run("whole", device_);
  // Not state.json: methods that work in stages write it inside a block.
  bench.Run("stopped", device_, [&] { return bench.Has("stopped", "streams-00001.safetensors"); });
  ASSERT_FALSE(IsRegularFile(bench.File("stopped/out/manifest.json")));
  EXPECT_EQ(ResumedBlocks(bench.Run("stopped", device_)), 1);
  ExpectSameArtifact(bench, "whole", "stopped");
}

TEST(RunTest, HasACaseForEveryRowOfTheCatalog) {
  std::set<std::string> tested;
  for (const MethodCase& of : kCases) tested.insert(json::parse(of.method).begin().key());
  for (const MethodRow& row : Methods()) EXPECT_EQ(tested.count(row.name), 1U) << row.name;
}

// Spec: ptq161.md 11.3, 11: fewer than five columns have one salient one, a
// single one is it.
TEST(RunTest, LinearsOfFewColumnsAreQuantizedAndPacked) {
  const json narrow = {{"hidden_size", 4},
                       {"num_attention_heads", 2},
                       {"head_dim", 2},
                       {"num_key_value_heads", 1},
                       {"intermediate_size", 1}};
  for (const char* method :
       {R"({"ptq161": {"epochs": 1}})",
        R"({"ptq161": {"epochs": 1, "learn_rounding": true, "rounding_stages": 2,
                       "rounding_steps": 2}})"}) {
    const Bench bench({"narrow", "llama", method}, narrow);
    bench.Run("whole", at::kCPU);
    const json manifest = bench.Manifest("whole");
    for (const json& output : manifest["outputs"]) EXPECT_TRUE(output["verified"].get<bool>());
    EXPECT_TRUE(manifest["quality"]["perplexity"]["quantized"].is_number());
    const ContainerReader packed(bench.File("whole/out/quantry"));
    for (const char* name : {"self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"}) {
      const QuantizedLinear linear = packed.Read(std::string("model.layers.1.") + name);
      EXPECT_LT(linear.columns(), 5);
      EXPECT_EQ(linear.mixed->salient_columns(), 1) << name;
    }
  }
}

// Trap of PTQ1.61's code: an architecture that is advertised, and fails.
TEST(RunTest, EveryArchitectureOfTheCatalogIsQuantized) {
  for (const Architecture* row : Architectures()) {
    const Bench bench({row->name.c_str(), row->name.c_str(), R"({"ptq161": {"epochs": 1}})"});
    bench.Run("whole", at::kCPU);
    const json manifest = bench.Manifest("whole");
    EXPECT_EQ(manifest["blocks"].size(), 2U) << row->name;
    for (const json& output : manifest["outputs"]) EXPECT_TRUE(output["verified"].get<bool>());
  }
}

const MethodCase& CaseOf(const std::string& name) {
  for (const MethodCase& of : kCases) {
    if (of.name == name) return of;
  }
  throw std::out_of_range(name);
}

// Bytes of a container's tensors: of all, and of those its linears are made of.
struct ContainerBytes {
  uint64_t all = 0, linears = 0;
};

ContainerBytes TensorsOf(const std::string& folder) {
  const std::set<std::string> modules = ContainerReader(folder).modules();
  ContainerBytes bytes;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    const auto file = SafetensorsFile::Open(entry.path());
    for (const TensorInfo& tensor : file->tensors()) {
      bytes.all += tensor.bytes();
      const size_t dot = tensor.name.rfind('.');
      const bool packed =
          modules.count(tensor.name.substr(0, dot)) != 0 && tensor.name.substr(dot + 1) != "bias";
      if (packed) bytes.linears += tensor.bytes();
    }
  }
  return bytes;
}

// bits.file counts what lies on the disk, and so do an output's own figures for
// the container of signs, whose rows are filled up to bytes.
TEST(RunTest, FileBitsAreThoseOfTheFiles) {
  for (const std::string name : {"rtn", "ptq161"}) {
    const Bench bench(CaseOf(name));
    bench.Run("whole", at::kCPU);
    const json manifest = bench.Manifest("whole");
    uint64_t bytes = 0;
    for (const auto& entry : fs::directory_iterator(bench.File("whole/out/quantry"))) {
      if (entry.path().extension() == ".safetensors") bytes += entry.file_size();
    }
    const ContainerBytes tensors = TensorsOf(bench.File("whole/out/quantry"));
    const json& output = manifest["outputs"][0];
    const double stored =
        output["bits_per_weight"].get<double>() * manifest["bits"]["linear_weights"].get<double>();
    if (name == "ptq161") {
      EXPECT_EQ(output["theoretical_bytes"].get<uint64_t>(), tensors.all);
      EXPECT_EQ(manifest["bits"]["theoretical_bytes"].get<uint64_t>(), tensors.all);
      EXPECT_DOUBLE_EQ(stored, static_cast<double>(8 * tensors.linears));
      EXPECT_LT(manifest["bits"]["linears"].get<double>(), output["bits_per_weight"].get<double>());
    } else {  // padding to words is the file's alone
      EXPECT_LE(output["theoretical_bytes"].get<uint64_t>(), tensors.all);
      EXPECT_LT(stored, static_cast<double>(8 * tensors.linears + 1));
    }
    EXPECT_GT(bytes, 0U);
    EXPECT_EQ(manifest["outputs"][0]["bytes"].get<uint64_t>(), bytes) << name;
    EXPECT_DOUBLE_EQ(manifest["bits"]["file"].get<double>(),
                     static_cast<double>(bytes) * 8 / manifest["bits"]["parameters"].get<double>());
  }
}

// Rotation takes a tied head off the embedding: that is written and quoted, and
// still no parameter of the model given.
TEST(RunTest, ARotatedModelsOwnHeadIsQuotedAndNoParameter) {
  const Bench bench(CaseOf("quarot"), {{"tie_word_embeddings", true}});
  const auto quote = QuoteJson(ParseJob(bench.JobJson("tied")));
  bench.Run("tied", at::kCPU);
  const json manifest = bench.Manifest("tied");
  const auto given = Checkpoint::Open(bench.File("model"));
  ASSERT_FALSE(given->Has("lm_head.weight"));
  EXPECT_EQ(quote["parameters"].get<int64_t>(), given->parameters());
  EXPECT_EQ(manifest["bits"]["parameters"].get<int64_t>(), given->parameters());
  EXPECT_EQ(manifest["bits"]["dense_bytes"].get<int64_t>(), 4 * given->parameters());  // fp32
  EXPECT_EQ(quote["outputs"][0]["format"].get<std::string>(), "OUTPUT_FORMAT_QUANTRY");
  EXPECT_EQ(quote["outputs"][0]["bytes"].get<uint64_t>(),
            TensorsOf(bench.File("tied/out/quantry")).all);
}

// A block of the model with what a written container has in its place.
Block WrittenBlock(const Checkpoint& source, const std::string& folder, int index) {
  const ContainerReader container(folder);
  const OutputReader tensors(folder, ContainerReader::kStem);
  const std::string prefix = source.BlockPrefix(index);
  const auto read = [&](const std::string& name, at::Tensor& into) {
    if (into.defined()) into = tensors.Read(prefix + name).to(at::kFloat);
  };
  Block block = LoadBlock(source, index);
  for (Linear& linear : block.linears) {
    linear.weight = container.Read(prefix + linear.name).Dequantize();
    read(linear.name + ".bias", linear.bias);
  }
  for (Norm& norm : block.norms) {
    read(norm.name + ".weight", norm.weight);
    read(norm.name + ".bias", norm.bias);
  }
  return block;
}

double LossOf(const at::Tensor& x, const at::Tensor& wanted) {
  return (x - wanted).square().sum(at::kDouble).item<double>() /
         static_cast<double>(x.size(0) * x.size(1));
}

// Losses and perplexity are those of the written weights with the activations
// asked for, and not what they would be without.
TEST(RunTest, WhatAJobTellsIsMeasuredWithItsActivations) {
  const Bench bench({"activations", "llama",
                     R"({"awq": {"grid": {"bits": 8, "group_size": -1}, "scale_grid_points": 2,
                                 "activations": {"bits": 3}}})"});
  bench.Run("whole", at::kCPU);
  const json manifest = bench.Manifest("whole");
  const auto source = Checkpoint::Open(bench.File("model"));
  const std::string folder = bench.File("whole/out/quantry");
  const auto block = [&](int index, int bits) {
    Block written = WrittenBlock(*source, folder, index);
    written.activations.bits = bits;
    return written;
  };
  const RopeTable rope = MakeRopeTable(source->architecture(), source->config(), kLength);
  const auto windows = [](int count, uint64_t seed) {
    const auto ids = Tokens(count * kLength, seed).get<std::vector<int64_t>>();
    return at::tensor(ids, at::kLong).view({count, kLength});
  };
  at::Tensor x_fp = Embed(*source, windows(8, 1));
  at::Tensor x_q = x_fp;
  for (int index = 0; index < 2; ++index) {
    x_fp = LoadBlock(*source, index).Forward(x_fp, rope);
    const double without = LossOf(block(index, 16).Forward(x_q, rope), x_fp);
    x_q = block(index, 3).Forward(x_q, rope);
    const double loss = LossOf(x_q, x_fp);
    EXPECT_NEAR(manifest["blocks"][index]["loss_final"].get<double>(), loss, 1e-3 * loss);
    EXPECT_GT(std::abs(loss - without), 0.1 * loss);
  }
  const auto perplexity = [&](int bits) {
    return Evaluate(*source, windows(5, 2).narrow(0, 0, 3),
                    [&](int index) { return block(index, bits); })
        .perplexity_quantized;
  };
  const double told = manifest["quality"]["perplexity"]["quantized"].get<double>();
  EXPECT_NEAR(told, perplexity(3), 1e-3 * told);
  EXPECT_GT(std::abs(told - perplexity(16)), 1e-2 * told);
}

// The losses a job tells are those of the packed blocks on the disk, on the
// inputs that the packed blocks before them give.
TEST(RunTest, T19_WrittenBlocksHaveTheLossesTold) {
  const MethodCase cases[] = {
      {"awq_start", "llama",
       R"({"tesseraq": {"grid": {"bits": 2, "group_size": 16}, "stages": 4, "steps_per_stage": 5,
                        "batch_size": 2, "learning_rate": 0.02}})"},
      {"dense_trained", "opt",
       R"({"tesseraq": {"grid": {"bits": 3, "group_size": -1}, "init": "INIT_NONE", "stages": 4,
                        "steps_per_stage": 5, "batch_size": 2, "learning_rate": 0.02,
                        "dense_learning_rate": 0.001}})"},
      {"signs", "llama", R"({"ptq161": {"epochs": 3}})"},
      {"learned_signs", "opt",
       R"({"ptq161": {"epochs": 2, "learn_rounding": true, "rounding_stages": 3,
                      "rounding_steps": 4}})"}};
  for (const MethodCase& of : cases) {
    const Bench bench(of);
    bench.Run("whole", at::kCPU);
    const json blocks = bench.Manifest("whole")["blocks"];
    const auto source = Checkpoint::Open(bench.File("model"));
    const RopeTable rope = MakeRopeTable(source->architecture(), source->config(), kLength);
    const auto tokens = Tokens(8 * kLength, 1).get<std::vector<int64_t>>();
    at::Tensor x_fp = Embed(*source, at::tensor(tokens, at::kLong).view({8, kLength}));
    at::Tensor x_q = x_fp;
    ASSERT_EQ(blocks.size(), 2U) << of.name;
    for (int index = 0; index < 2; ++index) {
      const Block written = WrittenBlock(*source, bench.File("whole/out/quantry"), index);
      x_fp = LoadBlock(*source, index).Forward(x_fp, rope);
      x_q = written.Forward(x_q, rope);
      const double loss = LossOf(x_q, x_fp);
      EXPECT_NEAR(blocks[index]["loss_final"].get<double>(), loss, 1e-4 * loss) << of.name;
    }
  }
}

// What a job hands from block to block, as its checkpoints hold it: the original
// model's hidden states, and those of the model it writes in the end.
class StreamsOfAJobTest : public ::testing::TestWithParam<MethodCase> {};

INSTANTIATE_TEST_SUITE_P(
    Methods, StreamsOfAJobTest,
    ::testing::Values(
        MethodCase{"tesseraq", "llama",
                   R"({"tesseraq": {"grid": {"bits": 2, "group_size": 16}, "stages": 2,
                             "steps_per_stage": 4, "batch_size": 2, "learning_rate": 0.02,
                             "dense_learning_rate": 0.001}})"},
        MethodCase{"ptq161", "llama", R"({"ptq161": {"epochs": 2}})"}),
    [](const auto& of) { return std::string(of.param.name); });

TEST_P(StreamsOfAJobTest, T24_StreamsAreTheOriginalsAndTheWrittenModels) {
  constexpr int kBlocks = 4;
  const Bench bench(GetParam(), {{"num_hidden_layers", kBlocks}});
  std::vector<Streams> kept;
  for (int index = 1; index < kBlocks; ++index) {
    const std::string name = "streams-0000" + std::to_string(index) + ".safetensors";
    bench.Run("job", at::kCPU, [&] { return bench.Has("job", name); });
    ASSERT_TRUE(bench.Has("job", name));
    kept.push_back(ReadStreams(bench.CheckpointDir("job") + "/" + name));
  }
  ASSERT_EQ(ResumedBlocks(bench.Run("job", at::kCPU)), kBlocks - 1);
  const auto source = Checkpoint::Open(bench.File("model"));
  const RopeTable rope = MakeRopeTable(source->architecture(), source->config(), kLength);
  const auto tokens = Tokens(8 * kLength, 1).get<std::vector<int64_t>>();
  at::Tensor original = Embed(*source, at::tensor(tokens, at::kLong).view({8, kLength}));
  at::Tensor written = original;
  for (int index = 0; index + 1 < kBlocks; ++index) {
    original = LoadBlock(*source, index).Forward(original, rope);
    written = WrittenBlock(*source, bench.File("job/out/quantry"), index).Forward(written, rope);
    EXPECT_TRUE(at::allclose(kept[index].x_fp, original, 1e-4, 1e-5)) << index;
    EXPECT_TRUE(at::allclose(kept[index].x_q, written, 1e-4, 1e-5)) << index;
    EXPECT_FALSE(at::allclose(written, original, 1e-2, 1e-2)) << index;
  }
}

TEST(RunTest, Bf16InTheConfigDecidesOnScales) {
  struct Case {
    at::ScalarType stored;
    json declared;
    at::ScalarType wanted;
  };
  const std::vector<Case> cases = {{at::kFloat, {{"torch_dtype", "bfloat16"}}, at::kBFloat16},
                                   {at::kHalf, {{"dtype", "bfloat16"}}, at::kBFloat16},
                                   {at::kFloat, {{"torch_dtype", "float32"}}, at::kHalf},
                                   {at::kHalf, json::object(), at::kHalf},
                                   {at::kBFloat16, {{"torch_dtype", "float16"}}, at::kBFloat16},
                                   {at::kBFloat16, json::object(), at::kBFloat16}};
  const test::TempDir dir;
  for (const auto& [stored, declared, wanted] : cases) {
    test::TinyModel model = test::MakeTinyModel("llama", declared);
    for (auto& [name, tensor] : model.tensors) tensor = tensor.to(stored);
    model.Write(dir.path());
    EXPECT_EQ(ScaleDtypeOf(*Checkpoint::Open(dir.path())), wanted) << stored << " " << declared;
  }
}

// Folds before an online rotation would change what the model computes, and no output says
// that its inputs are to be rotated.
TEST(RunTest, AModelWithOnlineRotationsIsNoSource) {
  const Bench bench(CaseOf("awq"), {{"quantry_rotation", {{"online", true}}}});
  const Job job = ParseJob(bench.JobJson("rotated"));
  const EngineError error = test::ErrorOf([&] { OpenInputs(job); });
  EXPECT_EQ(error.reason, "UNSUPPORTED_ARCHITECTURE") << error.what();
  EXPECT_TRUE(test::Mentions(error, "quantry_rotation")) << error.what();
  const std::string problems = QuoteJson(job)["problems"].dump();
  EXPECT_NE(problems.find("online rotations"), std::string::npos) << problems;
}

// At least one window goes through a block at once, however long it is.
TEST(RunTest, AQuoteCountsTheWindowsOfTheEvaluation) {
  const Bench bench(CaseOf("awq"));
  const auto quoted = [&](const char* place, int64_t length) {
    json job = bench.JobJson("quoted");
    job["evaluation"]["sequence_length"] = length;
    return QuoteJson(ParseJob(job))[place].get<int64_t>();
  };
  for (const char* place : {"host_memory_bytes", "device_memory_bytes"}) {
    EXPECT_LT(quoted(place, 2 * kLength) - quoted(place, kLength), 1000) << place;
    EXPECT_GT(quoted(place, 1 << 20), quoted(place, 1 << 19) + (1 << 19) * 4) << place;
  }
}

// A text's size bounds its tokens before anything is read of it.
TEST(RunTest, AQuoteTellsOfTextsThatAreTooShort) {
  const Bench bench(CaseOf("awq"));
  const auto told = [&](const std::string& what, const json& fields) {
    json job = bench.JobJson("quoted");
    job[what].update(fields);
    return QuoteJson(ParseJob(job))["problems"].dump();
  };
  // A token of text takes a byte, and one more may come before the first.
  const std::string letters = bench.File("letters.txt");
  std::ofstream(letters) << std::string(8 * kLength - 1, 'a');
  const json text = {{"path", letters}, {"format", "TEXT_FORMAT_TEXT"}};
  EXPECT_EQ(told("calibration", {{"samples", 8}}), "[]");
  EXPECT_EQ(told("calibration", {{"samples", 8}, {"text", text}}).find("bytes"), std::string::npos);
  const std::string nine = told("calibration", {{"samples", 9}, {"text", text}});
  EXPECT_NE(nine.find("INVALID_CALIBRATION: calibration text has 127 bytes, at most 128 tokens = "
                      "8 windows of 16, 9 are asked for"),
            std::string::npos)
      << nine;
  // Where bytes leave a doubt, tokens are counted: 80 lines of 14 bytes are 160 tokens.
  const std::string words = bench.File("words.txt");
  for (int i = 0; i < 80; ++i) std::ofstream(words, std::ios::app) << "[1,        3]\n";
  const json few = {{"path", words}, {"format", "TEXT_FORMAT_TOKEN_IDS"}};
  EXPECT_EQ(told("calibration", {{"samples", 10}, {"text", few}}), "[]");
  for (const int more : {11, 12}) {
    const std::string problem = told("calibration", {{"samples", more}, {"text", few}});
    EXPECT_NE(problem.find(StrCat("has 160 tokens = 10 windows of 16, ", more, " are asked for")),
              std::string::npos)
        << problem;
  }
  const std::string ids = told("evaluation", {{"windows", 4000}});
  EXPECT_NE(ids.find("INVALID_EVALUATION"), std::string::npos) << ids;
  // Random windows overlap: a text holds any number of them, or none.
  const json random = {{"samples", 4000}, {"sampling", "SAMPLING_RANDOM"}};
  EXPECT_EQ(told("calibration", random), "[]");
}

TEST(RunTest, WindowsBeyondTheModelsPositionsAreTold) {
  const Bench bench(CaseOf("rtn"));
  bench.Run("short", at::kCPU);
  EXPECT_FALSE(bench.Manifest("short").contains("warnings") &&
               !bench.Manifest("short")["warnings"].empty());
  const std::string config = bench.File("model/config.json");
  json changed = json::parse(ReadFile(config, 1 << 20, "TEST"));
  changed["max_position_embeddings"] = kLength - 1;
  std::ofstream(config) << changed.dump();
  bench.Run("long", at::kCPU);
  const std::string told = bench.Manifest("long")["warnings"].dump();
  for (const char* what :
       {"calibration windows have 16", "evaluation windows have 16", "knows 15 positions"}) {
    EXPECT_NE(told.find(what), std::string::npos) << told;
  }
}

// The warnings of a job on `bench`'s model after `change` has been at its linears.
std::string WarningsAfter(const Bench& bench, const MethodCase& of,
                          const std::function<void(const std::string&, at::Tensor&)>& change) {
  test::TinyModel model = test::MakeTinyModel(of.architecture);
  for (auto& [name, tensor] : model.tensors) {
    if (tensor.dim() == 2 && name.find("layers.") != std::string::npos) change(name, tensor);
  }
  model.Write(bench.File("model"));
  bench.Run("job", at::kCPU);
  return bench.Manifest("job")["warnings"].dump();
}

// A method of signs has no zero to give back.
TEST(RunTest, ZerosOfAPrunedModelAreTold) {
  // One weight of `step`, in no column all of them.
  const auto zero_one_of = [](int64_t step) {
    return [step](const std::string&, at::Tensor& weight) {
      for (const int64_t first : {0, 1}) {
        weight.slice(0, first, weight.size(0), 2).slice(1, first, weight.size(1), step).zero_();
      }
    };
  };
  const char* told = "50.0 % of the weights to be quantized are exactly zero";
  for (const std::string method : {"ptq161", "billm", "pbllm", "rtn"}) {
    const MethodCase& of = CaseOf(method);
    const std::string half = WarningsAfter(Bench(of), of, zero_one_of(2));
    EXPECT_EQ(half.find(told) != std::string::npos, method != "rtn") << method << ": " << half;
    EXPECT_EQ(half.find("method " + method) != std::string::npos, method != "rtn") << half;
  }
  const MethodCase& of = CaseOf("ptq161");
  EXPECT_EQ(WarningsAfter(Bench(of), of, zero_one_of(16)), "[]");
}

// Also by a run that finds the block in its checkpoint.
TEST(RunTest, GainsBeyondFp16AreTold) {
  const MethodCase& of = CaseOf("ptq161");
  const Bench bench(of);
  const std::string told =
      WarningsAfter(bench, of, [](const std::string& name, at::Tensor& weight) {
        if (name.find("layers.0.fc2") != std::string::npos) weight.mul_(1e6);
      });
  EXPECT_NE(told.find("65504"), std::string::npos) << told;
  EXPECT_NE(told.find("of block 0's fc2"), std::string::npos) << told;
  EXPECT_EQ(told.find("fc1"), std::string::npos) << told;
  bench.Run("stopped", at::kCPU, [&] { return bench.Has("stopped", "streams-00001.safetensors"); });
  ASSERT_EQ(ResumedBlocks(bench.Run("stopped", at::kCPU)), 1);
  EXPECT_EQ(bench.Manifest("stopped")["warnings"].dump(), told);
}

// The first pass of preprocessing is told of too, by a resumed run as well: its adapters are
// trained on what was stored, and may leave the second pass nothing to clip.
TEST(RunTest, GainsBeyondFp16OfTheFirstPassAreTold) {
  const MethodCase& of = CaseOf("ptq161_restored");
  const Bench bench(of);
  const std::string told =
      WarningsAfter(bench, of, [](const std::string& name, at::Tensor& weight) {
        if (name.find("layers.1.fc2") != std::string::npos) weight.mul_(1e6);
      });
  EXPECT_NE(told.find("preprocessing's first pass: gains and scales beyond fp16"),
            std::string::npos)
      << told;
  EXPECT_NE(told.find("of block 1's fc2"), std::string::npos) << told;
  bench.Run("stopped", at::kCPU, [&] { return bench.Has("stopped", "streams-00001.safetensors"); });
  bench.Run("stopped", at::kCPU);
  EXPECT_EQ(bench.Manifest("stopped")["warnings"].dump(), told);
}

// A grid's scales end at fp16's largest as well, whatever the method.
TEST(RunTest, ScalesBeyondFp16AreTold) {
  const MethodCase& of = CaseOf("rtn");
  const auto told = [&](double factor) {
    return WarningsAfter(Bench(of), of, [&](const std::string& name, at::Tensor& weight) {
      if (name.find("layers.0.mlp.up_proj") != std::string::npos) weight.select(0, 3).mul_(factor);
    });
  };
  EXPECT_EQ(told(1), "[]");
  const std::string warning = told(1e7);  // one row of 32 columns, groups of 16
  EXPECT_NE(warning.find("2 of block 0's mlp.up_proj"), std::string::npos) << warning;
  EXPECT_NE(warning.find("65504"), std::string::npos) << warning;
  EXPECT_EQ(warning.find("down_proj"), std::string::npos) << warning;
}

// A reader creates scales in the dtype that config.json names, so they must be
// exact in it: rounded while they are loaded, they are not what was measured.
TEST(RunTest, ScalesAreOfTheDtypeThatTheConfigNames) {
  const Bench bench(CaseOf("rtn"));
  const std::string config = bench.File("model/config.json");
  for (const auto& [declared, wanted] :
       {std::pair("bfloat16", at::kBFloat16), std::pair("float16", at::kHalf),
        std::pair("float32", at::kHalf)}) {
    json changed = json::parse(ReadFile(config, 1 << 20, "TEST"));
    changed["torch_dtype"] = declared;
    std::ofstream(config) << changed.dump();
    json job = bench.JobJson(declared);
    job["outputs"] = {{{"format", "OUTPUT_FORMAT_COMPRESSED_TENSORS"}},
                      {{"format", "OUTPUT_FORMAT_INT4_CARRIER"}}};
    bench.RunAs(job, at::kCPU);
    for (const char* format : {"compressed-tensors", "int4-carrier"}) {
      const std::string folder = bench.File(std::string(declared) + "/out/" + format);
      const OutputReader written(folder, "model");
      EXPECT_EQ(written.Read("model.layers.0.self_attn.q_proj.weight_scale").scalar_type(), wanted)
          << declared << " " << format;
      EXPECT_EQ(json::parse(ReadFile(folder + "/config.json", 1 << 20, "TEST"))["torch_dtype"],
                declared);
    }
  }
}

// What cannot be copied into the outputs is told before hours of work.
TEST(RunTest, FilesBesideTheWeightsAreLookedAtFirst) {
  const Bench bench(CaseOf("rtn"));
  const Job job = ParseJob(bench.JobJson("a"));
  EXPECT_NO_THROW(OpenInputs(job));
  std::ofstream(bench.File("model/merges.txt")).put('a');
  fs::resize_file(bench.File("model/merges.txt"), (uintmax_t{256} << 20) + 1);
  const EngineError error = test::ErrorOf([&] { OpenInputs(job); });
  EXPECT_EQ(error.reason, "INVALID_CHECKPOINT");
  EXPECT_TRUE(test::Mentions(error, "merges.txt")) << error.what();
}

// Whoever writes into the model's folder meanwhile gets an error, never an artifact of two models.
TEST(RunTest, AModelThatChangesMeanwhileIsRefused) {
  const Bench bench(CaseOf("rtn"));
  const auto change = [&](const std::string& name, const std::string& with) {
    Inputs inputs = OpenInputs(ParseJob(bench.JobJson("a")));
    EXPECT_NO_THROW(inputs.watch.Check());
    const std::string path = bench.File("model/" + name);
    const bool was = fs::exists(path);
    const std::string before = was ? ReadFile(path, 1 << 20, "TEST") : "";
    std::ofstream(path, std::ios::binary) << (with == "again" ? before : with);
    if (with.empty()) fs::remove(path);
    const EngineError error = test::ErrorOf([&] { inputs.watch.Check(); });
    fs::remove(path);
    if (was) std::ofstream(path, std::ios::binary) << before;
    return error.reason + (test::Mentions(error, path) ? " names it" : "");
  };
  for (const char* name : {"model.safetensors", "config.json", "chat_template.jinja"}) {
    EXPECT_EQ(change(name, "other"), "SOURCE_CHANGED names it") << name;
  }
  EXPECT_EQ(change("model.safetensors", ""), "SOURCE_CHANGED names it");
}

TEST(RunTest, AJobWhoseModelChangesLeavesNoArtifact) {
  const Bench bench(CaseOf("rtn"));
  const json job = bench.JobJson("a");
  fs::create_directories(bench.File("a"));
  const Seconds clock = [&] {
    const bool begun = bench.Has("a", "block-00000.safetensors");
    if (begun) std::ofstream(bench.File("model/generation_config.json")) << "{}";
    return 0.0;
  };
  const int fd = open("/dev/null", O_WRONLY);
  const EngineError error = test::ErrorOf([&] {
    EventWriter events(fd);
    RunJobOn(at::kCPU, ParseJob(job), events, clock);
  });
  close(fd);
  EXPECT_EQ(error.reason, "SOURCE_CHANGED") << error.what();
  EXPECT_TRUE(test::Mentions(error, "generation_config.json came")) << error.what();
  EXPECT_FALSE(fs::exists(bench.File("a/out/manifest.json")));
}

TEST(RunTest, AModelThatIsOnlyTouchedIsTheSame) {
  const Bench bench(CaseOf("rtn"));
  std::ofstream(bench.File("model/LICENSE")) << "of the model";
  fs::create_symlink("NOTICE", bench.File("model/NOTICE"));  // none that could be copied
  Inputs inputs = OpenInputs(ParseJob(bench.JobJson("a")));
  for (const char* name : {"model.safetensors", "config.json", "LICENSE"}) {
    const std::string path = bench.File(std::string("model/") + name);
    fs::last_write_time(path, fs::last_write_time(path) + std::chrono::hours(1));
    EXPECT_NO_THROW(inputs.watch.Check()) << name;
  }
}

// A twin is taken again as it was written, and written anew where it is not.
TEST(RunTest, ARotatedTwinThatWasDamagedIsMadeAgain) {
  const Bench bench(CaseOf("quarot"));
  const Job job = ParseJob(bench.JobJson("a"));
  uint64_t read = 0, made = 0;
  const Inputs inputs = OpenInputs(job, [&](uint64_t bytes) { read += bytes; });
  const std::string dir = bench.File("twin");
  OpenRotated(job, inputs, dir, [&](uint64_t bytes) { made += bytes; });
  EXPECT_GT(read, fs::file_size(bench.File("model/model.safetensors")));
  // Its tensors as they are rotated, then the file as it is hashed.
  EXPECT_GT(static_cast<double>(made), 1.8 * fs::file_size(dir + "/model.safetensors"));
  const auto whole = FilesBelow(dir);
  const auto written = fs::last_write_time(dir + "/model.safetensors");
  OpenRotated(job, inputs, dir);
  EXPECT_EQ(fs::last_write_time(dir + "/model.safetensors"), written);
  for (const char* name : {"model.safetensors", "config.json", "origin"}) {
    std::fstream file(dir + "/" + name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-9, std::ios::end);
    file.put('\x5a');
    file.close();
    OpenRotated(job, inputs, dir);
    EXPECT_EQ(FilesBelow(dir), whole) << name;
  }
}

// The windows that a job's evaluation looks at.
at::Tensor EvaluationWindows() {
  const json ids = Tokens(5 * kLength, 2);
  at::Tensor windows = at::empty({3, kLength}, at::kLong);
  for (int i = 0; i < 3 * kLength; ++i) windows.view(-1)[i] = ids[i].get<int64_t>();
  return windows;
}

// A limited evaluation divides by the windows it looked at (spec: ptq161.md 10, trap 8).
TEST(RunTest, ALimitedEvaluationIsThatOfItsWindows) {
  const Bench bench(CaseOf("rtn"));
  bench.Run("limited", at::kCPU);
  const double wanted =
      Evaluate(*Checkpoint::Open(bench.File("model")), EvaluationWindows(), {}).perplexity_dense;
  EXPECT_NEAR(bench.Manifest("limited")["quality"]["perplexity"]["dense"].get<double>(), wanted,
              1e-6 * wanted);
}

// The manifest and the report say what products were rounded to, where they were.
TEST(RunTest, ItIsToldWhatTrainingsProductsWereRoundedTo) {
  const bool chosen = MultipliesBfloat16(at::kCPU);
  const std::pair<const char*, bool> cases[] = {
      {"tesseraq", false}, {"tesseraq_bfloat16", true}, {"tesseraq_plus", chosen}};
  for (const auto& [name, rounded] : cases) {
    const Bench bench(CaseOf(name));
    bench.Run("whole", at::kCPU);
    const json report =
        json::parse(ReadFile(bench.File("whole/out/report/report.json"), 1 << 24, "TEST"));
    for (const json& told : {bench.Manifest("whole"), report}) {
      EXPECT_EQ(told.value("compute_dtype", ""), rounded ? "bfloat16" : "") << name;
    }
    const json method = report["reproduction"]["method"]["tesseraq"];
    if (std::string(name) == "tesseraq_plus") {
      EXPECT_EQ(method["compute_dtype"],
                rounded ? "COMPUTE_DTYPE_BFLOAT16" : "COMPUTE_DTYPE_FLOAT32");
    }
  }
}

// Killed inside a block: its kept stage goes on.
TEST(RunTest, StoppedInsideABlockItGoesOnFromItsStageToTheSameBytes) {
  const Bench bench(CaseOf("tesseraq"));
  bench.Run("whole", at::kCPU);
  const auto stages = [](const std::vector<json>& events) {
    return TimesTold(events, "stage_step");
  };
  const char* file = "stage-00001-001.safetensors";
  bench.Run("stopped", at::kCPU, [&] { return bench.Has("stopped", file); });
  ASSERT_TRUE(bench.Has("stopped", file));
  const std::vector<json> resumed = bench.Run("stopped", at::kCPU);
  EXPECT_EQ(ResumedBlocks(resumed), 1);
  bench.Run("after_a_block", at::kCPU,
            [&] { return bench.Has("after_a_block", "streams-00001.safetensors"); });
  EXPECT_LT(stages(resumed), stages(bench.Run("after_a_block", at::kCPU)));
  ExpectSameArtifact(bench, "whole", "stopped");
}

// Killed while all blocks are tuned together: the kept step goes on.
TEST(RunTest, StoppedWhileTheModelIsTunedItGoesOnToTheSameBytes) {
  const Bench bench(CaseOf("tesseraq_plus"));
  bench.Run("whole", at::kCPU);
  const auto steps = [](const std::vector<json>& events) { return TimesTold(events, "tuning_kl"); };
  const char* file = "tuning-0-00001.safetensors";
  bench.Run("stopped", at::kCPU, [&] { return bench.Has("stopped", file); });
  ASSERT_TRUE(bench.Has("stopped", file));
  EXPECT_LT(steps(bench.Run("stopped", at::kCPU)), steps(bench.Run("again", at::kCPU)));
  EXPECT_FALSE(bench.Has("stopped", file));
  ExpectSameArtifact(bench, "whole", "stopped");
}

// Killed after that: its steps count as done.
TEST(RunTest, StoppedAfterTheModelWasTunedAllStepsAreCounted) {
  const Bench bench(CaseOf("tesseraq_plus"));
  const auto last = [](const std::vector<json>& events) {
    int64_t done = 0;
    for (const json& event : events) {
      if (event.contains("progress")) done = event["progress"].value("steps_done", int64_t{0});
    }
    return done;
  };
  const int64_t whole = last(bench.Run("whole", at::kCPU));
  const char* file = "tuned-00000.safetensors";
  bench.Run("stopped", at::kCPU, [&] { return bench.Has("stopped", file); });
  ASSERT_TRUE(bench.Has("stopped", file));
  EXPECT_EQ(last(bench.Run("stopped", at::kCPU)), whole);
  ExpectSameArtifact(bench, "whole", "stopped");
}

class RestoredTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { QUANTRY_TAKE_DEVICE(device_, GetParam()); }
  at::Device device_ = at::kCPU;
};

INSTANTIATE_TEST_SUITE_P(All, RestoredTest, test::kDevices,
                         [](const auto& device) { return std::string(device.param); });

// Killed while adapters are trained: the kept ones go on, no step is lost.
TEST_P(RestoredTest, StoppedWhileAdaptersAreTrainedItGoesOnToTheSameBytes) {
  const Bench bench(CaseOf("ptq161_restored"));
  const char* file = "first-pass/adapters.safetensors";
  bench.Run("whole", device_);
  const auto steps = [](const std::vector<json>& events) { return TimesTold(events, "lm_loss"); };
  const int before =
      steps(bench.Run("stopped", device_, [&] { return bench.Has("stopped", file); }));
  ASSERT_TRUE(bench.Has("stopped", file));
  ASSERT_FALSE(bench.Has("stopped", "state.json")) << "the adapters were done";
  const int after = steps(bench.Run("stopped", device_));
  EXPECT_LT(before, 6);
  EXPECT_LT(after, steps(bench.Run("again", device_))) << "it began at the first step";
  ExpectSameArtifact(bench, "whole", "stopped");
}

// Spec: ptq161.md 10, trap 6. The second pass measures the restored model anew: its first block is
// that of a job that was given this model, from a folder named as the original's, and not the first
// pass's.
TEST_P(RestoredTest, TheSecondPassTakesNothingFromTheFirst) {
  const Bench bench(CaseOf("ptq161_restored"));
  bench.Run("restored", device_, [&] { return bench.Has("restored", "state.json"); });
  ASSERT_TRUE(IsRegularFile(bench.CheckpointDir("restored") + "/restored/model.safetensors"));
  json alone = bench.JobJson("alone");
  alone.erase("preprocessing");
  alone["model_dir"] = bench.File("again/model");
  fs::create_directories(bench.File("again"));
  fs::copy(bench.CheckpointDir("restored") + "/restored", bench.File("again/model"));
  bench.RunAs(alone, device_);
  const auto digest = [&](const std::string& job, const std::string& folder) {
    return BlockDigest(
        ReadBlockFile(bench.CheckpointDir(job) + folder + "/block-00000.safetensors").block);
  };
  EXPECT_EQ(digest("restored", ""), digest("alone", ""));
  EXPECT_NE(digest("restored", ""), digest("restored", "/first-pass"));
}

// The restored model is measured as it is written: in the model's own dtype,
// its activations left alone whatever the method does to them.
class RestoredFileTest : public ::testing::TestWithParam<MethodCase> {};

INSTANTIATE_TEST_SUITE_P(
    Methods, RestoredFileTest,
    ::testing::Values(CaseOf("ptq161_restored"),
                      MethodCase{"omniquant_restored", "opt",
                                 R"({"omniquant": {"grid": {"bits": 3, "group_size": -1},
                                                   "epochs": 1, "activations": {"bits": 3}}})",
                                 true}),
    [](const auto& of) { return std::string(of.param.name); });

TEST_P(RestoredFileTest, TheRestoredModelsPerplexityIsThatOfItsFile) {
  const Bench bench(GetParam());
  test::TinyModel model = test::MakeTinyModel("opt");
  for (auto& [name, tensor] : model.tensors) tensor = tensor.to(at::kBFloat16);
  model.Write(bench.File("model"));
  bench.Run("job", at::kCPU, [&] { return bench.Has("job", "state.json"); });
  const auto restored = Checkpoint::Open(bench.CheckpointDir("job") + "/restored");
  ASSERT_EQ(restored->storage_dtype(), at::kBFloat16);
  const double wanted = Evaluate(*restored, EvaluationWindows(), {}).perplexity_dense;
  bench.Run("job", at::kCPU);
  const double told = bench.Manifest("job")["preprocessing"]["perplexity_restored"].get<double>();
  EXPECT_NEAR(told, wanted, 1e-6 * wanted);
}

// Every update's loss is told, and its last is near the report's.
TEST(RunTest, TheAdaptersLossIsTold) {
  const Bench bench(CaseOf("ptq161_restored"));
  std::vector<double> losses;
  for (const json& event : bench.Run("whole", at::kCPU)) {
    if (!event.contains("progress") || !event["progress"].contains("metrics")) continue;
    const json& metrics = event["progress"]["metrics"];
    if (event["progress"]["stage"] == "STAGE_PREPROCESSING" && metrics.contains("lm_loss")) {
      const auto loss =
          metrics["lm_loss"].get<double>();  // stands until the next update's is known
      if (losses.empty() || losses.back() != loss) losses.push_back(loss);
    }
  }
  ASSERT_GE(losses.size(), 6U);
  const json report = bench.Manifest("whole")["preprocessing"];
  EXPECT_DOUBLE_EQ(losses[0], report["loss_first"].get<double>());  // a tenth of 6: one
  EXPECT_DOUBLE_EQ(losses[5], report["loss_last"].get<double>());
}

}  // namespace
}  // namespace quantry::engine
