// quantry-engine generate
#include <algorithm>
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
#include "worker/engine/inference/generate.h"
#include "worker/engine/inference/runnable_model.h"
#include "worker/engine/inference/text_stream.h"
#include "worker/engine/model/config.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace quantry::engine {
namespace {

constexpr char kUsage[] =
    "generate --model DIR --prompt TEXT [--max-tokens 128] [--device D] [--threads N] "
    "[--packed-product auto|tiles]";
constexpr int64_t kMaxThreads = 4096;
constexpr int64_t kMaxTokens = int64_t{1} << 20;
constexpr uint64_t kMaxConfigBytes = uint64_t{1} << 20;

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// eos_token_id of one file: a number, a list, or absent.
void AddEnds(const std::string& path, std::set<int32_t>* ends) {
  if (!IsRegularFile(path)) return;
  const nlohmann::json config =
      ParseJson(ReadFile(path, kMaxConfigBytes, "INVALID_CHECKPOINT"), path, "INVALID_CHECKPOINT");
  const nlohmann::json id =
      config.is_object() ? config.value("eos_token_id", nlohmann::json()) : nlohmann::json();
  for (const nlohmann::json& one : id.is_array() ? id : nlohmann::json::array({id})) {
    if (one.is_number_unsigned() && one.get<uint64_t>() <= INT32_MAX) {
      ends->insert(one.get<int32_t>());
    }
  }
}

std::vector<int32_t> PromptTokens(const Tokenizer& tokenizer, const ModelConfig& config,
                                  const std::string& prompt) {
  if (const int64_t offset = FindInvalidUtf8(prompt); offset >= 0) {
    throw UserError("INVALID_SPEC", StrCat("the prompt is not UTF-8 at byte ", offset),
                    {{"offset", std::to_string(offset)}});
  }
  std::vector<int32_t> ids = tokenizer.EncodePrompt(prompt);
  tokenizer.CheckIds(ids, config.vocab_size);
  if (ids.empty()) {
    throw UserError("INVALID_SPEC",
                    "the prompt is empty and the tokenizer adds no token of its own: give some "
                    "text to go on from");
  }
  return ids;
}

void Report(const GenerationReport& report, const RunnableModel& model) {
  const int64_t steps = report.new_tokens > 0 ? report.new_tokens - (report.stopped ? 0 : 1) : 0;
  std::cerr << StrCat(model.kind(), " weights; prompt: ", report.prompt_tokens, " tokens in ",
                      report.prompt_seconds, " s; generated: ", report.new_tokens, " tokens");
  if (steps > 0 && report.generation_seconds > 0) {
    std::cerr << StrCat(", ", static_cast<double>(steps) / report.generation_seconds, " tokens/s");
  }
  std::cerr << StrCat("; peak memory ", PeakRssBytes() >> 20, " MiB\n");
}

// --max-tokens; by default 128, or what the model has room for after the prompt.
int64_t MaxTokens(const Options& options, const RunnableModel& model, int64_t prompt) {
  const int64_t longest =
      LongestSequence(model.checkpoint()->architecture(), model.checkpoint()->config());
  const int64_t room = longest - prompt;
  const int64_t limit =
      options.Integer("max-tokens", 1, kMaxTokens, std::clamp<int64_t>(room, 1, 128));
  if (limit <= room) return limit;
  throw UserError("INVALID_SPEC",
                  StrCat("the prompt has ", prompt, " tokens and --max-tokens asks for ", limit,
                         " more; this model takes at most ", longest, " in all"),
                  {{"wanted", std::to_string(prompt + limit)}, {"limit", std::to_string(longest)}});
}

void Generate(const Options& options) {
  ConfigureRuntime(static_cast<int>(options.Integer("threads", 0, kMaxThreads, 0)));
  const at::Device device = OpenDevice(options.Text("device", "auto"));
  const std::string dir = options.Text("model", "");
  const auto model = OpenRunnable(options);
  const auto tokenizer = Tokenizer::Load((std::filesystem::path(dir) / "tokenizer.json").string());
  const std::string prompt = options.Text("prompt", "");
  const std::vector<int32_t> ids = PromptTokens(*tokenizer, model->checkpoint()->config(), prompt);
  const int64_t limit = MaxTokens(options, *model, static_cast<int64_t>(ids.size()));
  std::set<int32_t> ends;
  AddEnds(dir + "/config.json", &ends);
  AddEnds(dir + "/generation_config.json", &ends);
  Decoder decoder(model->checkpoint(), model->LoadBlocks(device),
                  static_cast<int64_t>(ids.size()) + limit, device);
  TextStream text(tokenizer, ids);
  std::cout << prompt << std::flush;
  const GenerationReport report = GenerateGreedily(
      decoder, ids, limit, ends, [&](int32_t id) { std::cout << text.Add(id) << std::flush; },
      SteadySeconds);
  std::cout << text.Finish() << std::endl;
  Report(report, *model);
}

}  // namespace

int RunGenerate(int argc, char** argv) {
  try {
    Generate(Options(argc, argv,
                     {"model", "prompt", "max-tokens", "device", "threads", "packed-product"},
                     {"model", "prompt"}));
    return 0;
  } catch (const UsageError& error) {
    std::cerr << "quantry-engine: " << error.message << "\nusage: quantry-engine " << kUsage
              << "\n";
    return 2;
  }
}

}  // namespace quantry::engine
