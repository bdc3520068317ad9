#include "worker/engine/evaluation/tools.h"

#include <ATen/ATen.h>

#include <chrono>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/options.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/calibration/dataset.h"
#include "worker/engine/device/device.h"
#include "worker/engine/evaluation/evaluator.h"
#include "worker/engine/inference/runnable_model.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace quantry::engine {
namespace {

constexpr int64_t kMaxThreads = 4096;
constexpr int64_t kMaxLength = int64_t{1} << 20;

at::Device Start(const Options& options) {
  ConfigureRuntime(static_cast<int>(options.Integer("threads", 0, kMaxThreads, 0)));
  return OpenDevice(options.Text("device", "auto"));
}

TextFormat FormatOf(const Options& options) {
  const std::string name = options.Text("format", "text");
  if (name != "text" && name != "tokens") {
    throw UsageError(StrCat("--format must be text or tokens, got '", name, "'"));
  }
  return name == "text" ? TextFormat::kText : TextFormat::kTokenIds;
}

std::string TokenizerPath(const Checkpoint& checkpoint) {
  return (std::filesystem::path(checkpoint.dir()) / "tokenizer.json").string();
}

// Runs a tool's body; usage errors become exit status 2.
template <typename Body>
int Guard(const char* usage, const Body& body) {
  try {
    body();
    return 0;
  } catch (const UsageError& error) {
    std::cerr << "quantry-engine: " << error.message << "\nusage: quantry-engine " << usage << "\n";
    return 2;
  }
}

// int64 [windows, length] of a JSON array of arrays of equal length.
at::Tensor ReadWindows(const std::string& path, int64_t vocab_size) {
  constexpr uint64_t kMaxBytes = 64 << 20;
  const nlohmann::json rows =
      ParseJson(ReadFile(path, kMaxBytes, "INVALID_EVALUATION"), path, "INVALID_EVALUATION", 2);
  const bool rectangular = rows.is_array() && !rows.empty() && rows[0].is_array();
  std::vector<int64_t> ids;
  for (const auto& row : rectangular ? rows : nlohmann::json::array()) {
    if (!row.is_array() || row.size() != rows[0].size() || row.empty()) break;
    for (const auto& id : row) {
      if (id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(vocab_size)) {
        ids.push_back(id.get<int64_t>());
      }
    }
  }
  if (!rectangular || ids.size() != rows.size() * rows[0].size() || ids.empty()) {
    throw UserError("INVALID_EVALUATION",
                    StrCat(path,
                           ": a JSON array of arrays of equal length is wanted, of token ids "
                           "below ",
                           vocab_size));
  }
  return at::tensor(ids, at::kLong).view({static_cast<int64_t>(rows.size()), -1});
}

at::Tensor WholeLogits(const RunnableModel& model, const at::Tensor& ids,
                       const at::Device& device) {
  const Checkpoint& checkpoint = *model.checkpoint();
  CheckSequenceLength(checkpoint.architecture(), checkpoint.config(), ids.size(1));
  const RopeTable rope =
      MakeRopeTable(checkpoint.architecture(), checkpoint.config(), ids.size(1), device);
  at::Tensor hidden = Embed(checkpoint, ids, device);
  for (int i = 0; i < checkpoint.config().num_layers; ++i) {
    hidden = model.LoadBlock(i, device).Forward(hidden, rope);
  }
  const OutputHead head(checkpoint, device);
  const at::Tensor rows = head.Normalize(hidden).reshape({-1, hidden.size(2)});
  return head.Logits(rows, 0, head.vocab_size()).view({ids.size(0), ids.size(1), -1});
}

nlohmann::ordered_json Describe(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  nlohmann::ordered_json json = {
      {"architecture", checkpoint.architecture().name},
      {"model_type", config.model_type},
      {"parameters", checkpoint.parameters()},
      {"storage_dtype", std::string(SafetensorsDtypeName(checkpoint.storage_dtype()))},
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"layers", config.num_layers},
      {"heads", config.num_heads},
      {"kv_heads", config.num_kv_heads},
      {"head_dim", config.head_dim},
      {"vocab_size", config.vocab_size},
      {"max_positions", config.max_positions},
      {"activation", std::string(ActivationName(config.activation))},
      {"tied_embeddings", config.tie_word_embeddings},
  };
  json["linears"] = nlohmann::ordered_json::array();
  for (const LinearSpec& linear : checkpoint.architecture().linears) {
    const LinearShape shape = ShapeOf(config, linear.role);
    json["linears"].push_back({{"name", linear.name},
                               {"out_features", shape.out},
                               {"in_features", shape.in},
                               {"bias", HasBias(config, linear)}});
  }
  for (const std::string& name : checkpoint.names()) {
    const TensorInfo& info = checkpoint.Info(name);
    json["tensors"][name] = {{"dtype", std::string(SafetensorsDtypeName(info.dtype))},
                             {"shape", info.shape}};
  }
  return json;
}

void Evaluate(const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  const at::Device device = Start(options);
  const auto model = OpenRunnable(options);
  const auto& checkpoint = model->checkpoint();
  const TextSource source{options.Text("text", ""), FormatOf(options), "evaluation",
                          "INVALID_EVALUATION"};
  std::vector<int32_t> tokens;
  {
    std::shared_ptr<const Tokenizer> tokenizer;
    if (source.format == TextFormat::kText) tokenizer = Tokenizer::Load(TokenizerPath(*checkpoint));
    tokens = ReadTokens(source, tokenizer.get(), checkpoint->config().vocab_size);
  }
  const WindowSpec spec{options.Integer("windows", 0, kMaxLength, 0),
                        options.Integer("length", 2, kMaxLength, 256)};
  EvaluationOptions evaluation;
  evaluation.device = device;
  evaluation.blocks = [&](int index) { return model->LoadBlock(index, device); };
  evaluation.max_stream_bytes =
      options.Integer("max-stream-bytes", 1, int64_t{1} << 40, evaluation.max_stream_bytes);
  const EvaluationResult result =
      Evaluate(*checkpoint, CutWindows(tokens, spec, source), {}, evaluation);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const nlohmann::ordered_json json = {{"perplexity", result.perplexity_dense},
                                       {"weights", model->kind()},
                                       {"windows", result.windows},
                                       {"length", spec.length},
                                       {"predicted_tokens", result.tokens},
                                       {"file_tokens", tokens.size()},
                                       {"device", DescribeDevice(device)},
                                       {"seconds", seconds.count()},
                                       {"peak_rss_bytes", PeakRssBytes()},
                                       {"peak_device_bytes", PeakDeviceBytes(device)}};
  std::cout << json.dump() << std::endl;
}

}  // namespace

int RunLogits(int argc, char** argv) {
  return Guard(
      "logits --model DIR --tokens FILE --output FILE [--device D] [--threads N] "
      "[--packed-product auto|tiles]",
      [&] {
        const Options options(argc, argv,
                              {"model", "tokens", "output", "device", "threads", "packed-product"},
                              {"model", "tokens", "output"});
        const at::Device device = Start(options);
        const auto model = OpenRunnable(options);
        const at::Tensor ids =
            ReadWindows(options.Text("tokens", ""), model->checkpoint()->config().vocab_size);
        const at::Tensor logits = WholeLogits(*model, ids, device);
        SafetensorsWriter writer(options.Text("output", ""),
                                 {{"logits", at::kFloat, logits.sizes().vec()}});
        writer.Append("logits", logits);
        writer.Finish();
      });
}

int RunEval(int argc, char** argv) {
  return Guard(
      "eval --model DIR --text FILE [--format text|tokens] [--length 256] [--windows 0] "
      "[--device D] [--threads N] [--max-stream-bytes N] [--packed-product auto|tiles]",
      [&] {
        Evaluate(Options(argc, argv,
                         {"model", "text", "format", "length", "windows", "device", "threads",
                          "max-stream-bytes", "packed-product"},
                         {"model", "text"}));
      });
}

int RunInspect(int argc, char** argv) {
  return Guard("inspect --model DIR", [&] {
    const Options options(argc, argv, {"model"}, {"model"});
    std::cout << Describe(*Checkpoint::Open(options.Text("model", ""))).dump(2) << std::endl;
  });
}

}  // namespace quantry::engine
