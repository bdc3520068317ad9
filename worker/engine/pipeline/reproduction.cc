#include "worker/engine/pipeline/reproduction.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;
using Words = std::vector<std::string>;

// Shortest text that reads back as the same number.
std::string NumberText(double value) { return Json(value).dump(); }

void Add(Words& words, const std::string& flag, const std::string& value) {
  words.push_back(flag);
  words.push_back(value);
}

void AddText(Words& words, const std::string& flag, const std::string& file, const TextJob& text) {
  Add(words, flag, file);
  const std::string stem = flag == "--preprocessing-corpus" ? "--preprocessing" : flag;
  if (text.source.format == TextFormat::kTokenIds) Add(words, stem + "-format", "tokens");
  Add(words, stem + "-length", std::to_string(text.windows.length));
}

// Options of the adapters that differ from the defaults.
void AddLora(Words& words, const LoraOptions& lora) {
  const LoraOptions defaults;
  const auto number = [&](const char* flag, double given, double usual) {
    if (given != usual) Add(words, flag, NumberText(given));
  };
  const auto count = [&](const char* flag, int64_t given, int64_t usual) {
    if (given != usual) Add(words, flag, std::to_string(given));
  };
  count("--preprocessing-rank", lora.rank, defaults.rank);
  number("--preprocessing-alpha", lora.alpha, defaults.alpha);
  number("--preprocessing-dropout", lora.dropout, defaults.dropout);
  count("--preprocessing-accumulation", lora.accumulation, defaults.accumulation);
  number("--preprocessing-learning-rate", lora.learning_rate, defaults.learning_rate);
  count("--preprocessing-warmup-steps", lora.warmup_steps, defaults.warmup_steps);
  number("--preprocessing-clip-norm", lora.clip_norm, defaults.clip_norm);
  if (lora.attention_output) words.emplace_back("--preprocessing-attention-output");
}

void AddPreprocessing(Words& words, const PreprocessingJob& preprocessing) {
  Add(words, "--preprocessing", "lora");
  AddText(words, "--preprocessing-corpus", "CORPUS_FILE", preprocessing.corpus);
  Add(words, "--preprocessing-steps", std::to_string(preprocessing.lora.steps));
  AddLora(words, preprocessing.lora);
}

void AddGate(Words& words, const QualityGate& gate) {
  if (gate.max_perplexity_ratio > 0) {
    Add(words, "--max-perplexity-ratio", NumberText(gate.max_perplexity_ratio));
  }
  if (gate.max_perplexity_increase > 0) {
    Add(words, "--max-perplexity-increase", NumberText(gate.max_perplexity_increase));
  }
}

// Keys in the order in which a job's own are written, so that the repeat's report is the same.
Json MethodOf(const Job& job, ComputeDtype compute) {
  nlohmann::json method = nlohmann::json::parse(job.method_json);
  if (!job.method->Compute()) {
    method.front()["compute_dtype"] =
        compute == ComputeDtype::kBfloat16 ? "COMPUTE_DTYPE_BFLOAT16" : "COMPUTE_DTYPE_FLOAT32";
  }
  return Json::parse(method.dump());
}

}  // namespace

nlohmann::ordered_json Reproduction(const Job& job, const RunWith& with) {
  Words words = {"quantry", "submit", "MODEL_DIR"};
  Add(words, "--method-config", "METHOD_CONFIG");
  if (job.calibration) {
    AddText(words, "--calibration", "CALIBRATION_FILE", *job.calibration);
    Add(words, "--calibration-samples", std::to_string(job.calibration->windows.windows));
    if (job.calibration->windows.sampling == Sampling::kRandom) {
      Add(words, "--calibration-sampling", "random");
    }
  }
  if (job.preprocessing) AddPreprocessing(words, *job.preprocessing);
  if (job.evaluation) {
    AddText(words, "--evaluation", "EVALUATION_FILE", *job.evaluation);
    Add(words, "--evaluation-windows", std::to_string(job.evaluation->windows.windows));
  }
  AddGate(words, job.quality_gate);
  for (const OutputFormatRow* row : job.outputs) Add(words, "--format", std::string(row->name));
  words.push_back("--seed=" + std::to_string(job.seed));
  Add(words, "--threads", std::to_string(with.threads));
  Add(words, "--device", with.device_type);
  return {{"command", Join(words, words.size(), " ")},
          {"argv", words},
          {"method", MethodOf(job, with.compute)}};
}

}  // namespace quantry::engine
