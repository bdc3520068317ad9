#include "worker/engine/pipeline/job.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/json_object.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

constexpr int64_t kDefaultLength = 2048;

TextSource ParseText(JsonObject& parent, const std::string& what, const std::string& reason) {
  TextSource source;
  source.what = what;
  source.reason = reason;
  std::optional<JsonObject> text = parent.Object("text");
  if (!text) parent.Refuse("text", "an object with path and format");
  source.path = text->Required("path");
  const int format = text->Choice(
      "format", {"TEXT_FORMAT_UNSPECIFIED", "TEXT_FORMAT_TEXT", "TEXT_FORMAT_TOKEN_IDS"}, 0);
  source.format = format == 2 ? TextFormat::kTokenIds : TextFormat::kText;
  text->Finish();
  return source;
}

int64_t ParseLength(JsonObject& object, int64_t fallback) {
  const int64_t length = object.Int("sequence_length", 0, 0, JobLimits::kSequenceLength);
  if (length == 1) object.Refuse("sequence_length", "at least 2 tokens (0 = default)");
  return length == 0 ? fallback : length;
}

TextJob ParseCalibration(JsonObject object, uint64_t seed, const StreamShape& defaults) {
  TextJob calibration;
  calibration.source = ParseText(object, "calibration", "INVALID_CALIBRATION");
  const int64_t samples = object.Int("samples", 0, 0, JobLimits::kSamples);
  calibration.windows.windows = samples == 0 ? defaults.windows : samples;
  calibration.windows.length = ParseLength(object, defaults.length);
  const int sampling = object.Choice(
      "sampling", {"SAMPLING_UNSPECIFIED", "SAMPLING_CONTIGUOUS", "SAMPLING_RANDOM"}, 0);
  calibration.windows.sampling = sampling == 2 ? Sampling::kRandom : Sampling::kContiguous;
  calibration.windows.seed = seed;
  object.Finish();
  return calibration;
}

TextJob ParseEvaluation(JsonObject object, int64_t default_length) {
  TextJob evaluation;
  evaluation.source = ParseText(object, "evaluation", "INVALID_EVALUATION");
  evaluation.windows.length = ParseLength(object, default_length);
  evaluation.windows.windows = object.Int("windows", 0, 0, JobLimits::kSamples);
  object.Finish();
  return evaluation;
}

// A number of the options: 0 and absence leave `value` alone.
void Override(JsonObject& options, const std::string& name, double& value) {
  const double given = options.Number(name, 0, 0);
  if (given > 0) value = given;
}

void Override(JsonObject& options, const std::string& name, int64_t most, int64_t& value) {
  const int64_t given = options.Int(name, 0, 0, most);
  if (given > 0) value = given;
}

LoraOptions ParseLora(JsonObject options, uint64_t seed) {
  LoraOptions lora;
  Override(options, "rank", JobLimits::kSamples, lora.rank);
  Override(options, "alpha", lora.alpha);
  const double dropout = options.Number("dropout", 0, -1);
  if (dropout >= 1 || (dropout < 0 && dropout != -1)) {
    options.Refuse("dropout", "at least 0 and below 1 (0 = the default), or -1 (none)");
  }
  if (dropout != 0) lora.dropout = std::max(0.0, dropout);
  Override(options, "steps", JobLimits::kSteps, lora.steps);
  Override(options, "accumulation", JobLimits::kSamples, lora.accumulation);
  Override(options, "learning_rate", lora.learning_rate);
  Override(options, "warmup_steps", JobLimits::kSteps, lora.warmup_steps);
  if (lora.warmup_steps >= lora.steps) {
    options.Refuse("warmup_steps",
                   StrCat("below steps, ", lora.steps, " (0 = the default, a tenth)"));
  }
  Override(options, "clip_norm", lora.clip_norm);
  lora.attention_output = options.Bool("attention_output", false);
  lora.seed = seed;
  options.Finish();
  return lora;
}

PreprocessingJob ParsePreprocessing(JsonObject object, uint64_t seed, int64_t default_length) {
  PreprocessingJob preprocessing;
  preprocessing.json = object.value().dump();
  preprocessing.corpus.source = ParseText(object, "preprocessing corpus", "INVALID_CALIBRATION");
  preprocessing.corpus.windows.length = ParseLength(object, default_length);
  const nlohmann::json none = nlohmann::json::object();
  std::optional<JsonObject> lora = object.Object("lora");
  preprocessing.lora = ParseLora(lora ? *lora : JsonObject(none, object.PathOf("lora")), seed);
  object.Finish();
  return preprocessing;
}

void ParseMethod(JsonObject& parent, Job& job) {
  std::optional<JsonObject> kinds = parent.Object("method");
  std::vector<std::string> known;
  for (const MethodRow& row : Methods()) known.push_back(row.name);
  if (!kinds) parent.Refuse("method", StrCat("an object with one of ", Join(known)));
  for (const MethodRow& row : Methods()) {
    std::optional<JsonObject> options = kinds->Object(row.name);
    if (!options) continue;
    if (job.method_row != nullptr) parent.Refuse("method", "one method, not two");
    job.method_row = &row;
    job.grid = row.parse_grid == nullptr ? ParseGrid(*options) : row.parse_grid(*options);
    if (row.quantizes_activations) {
      const auto defaults = row.default_activations;
      job.activations =
          ParseActivations(*options, defaults == nullptr ? ActivationSpec() : defaults(*options));
    }
    if (row.rotation != nullptr) job.rotation = row.rotation(*options, job.activations);
    job.method = row.create(*options);
    options->Finish();
    job.method_json = kinds->value().dump();
  }
  kinds->Finish();
  if (job.method_row == nullptr) parent.Refuse("method", StrCat("one of ", Join(known)));
}

bool Writes(const MethodRow& method, const std::string& format) {
  const auto& formats = method.output_formats;
  return std::find(formats.begin(), formats.end(), format) != formats.end();
}

// As the service chooses (server/rpc/validation.cc).
const OutputFormatRow* DefaultFormat(const Job& job) {
  for (const char* name : {"compressed-tensors", "quantry", "dense"}) {
    for (const OutputFormatRow& row : OutputFormats()) {
      const bool carries =
          row.refuses(job.grid).empty() && (row.carries_online_rotation || !job.rotation.online);
      if (row.name == name && carries && Writes(*job.method_row, row.name)) return &row;
    }
  }
  throw EngineError(FailureClass::kBug, "INTERNAL",
                    "method " + job.method_row->name + " has no output format");
}

void ParseOutputs(JsonObject& parent, Job& job) {
  for (JsonObject& output : parent.Objects("outputs")) {
    const std::string wanted = output.String("format", "OUTPUT_FORMAT_UNSPECIFIED");
    output.Finish();
    const OutputFormatRow* found = nullptr;
    std::vector<std::string> known;
    for (const OutputFormatRow& row : OutputFormats()) {
      known.push_back(row.enum_name);
      if (row.enum_name == wanted) found = &row;
    }
    if (found == nullptr) output.Refuse("format", StrCat("one of ", Join(known)));
    if (!Writes(*job.method_row, found->name)) {
      output.Refuse("format", StrCat("one that method ", job.method_row->name, " can write (",
                                     Join(job.method_row->output_formats), ")"));
    }
    if (std::find(job.outputs.begin(), job.outputs.end(), found) != job.outputs.end()) {
      output.Refuse("format", "a format that is not asked for twice");
    }
    CheckFormat(*found, job.grid);
    job.outputs.push_back(found);
  }
  if (job.outputs.empty()) job.outputs.push_back(DefaultFormat(job));
}

QualityGate ParseGate(JsonObject& parent) {
  QualityGate gate;
  if (std::optional<JsonObject> object = parent.Object("quality_gate")) {
    gate.max_perplexity_ratio = object->Number("max_perplexity_ratio", 0, 0);
    gate.max_perplexity_increase = object->Number("max_perplexity_increase", 0, 0);
    object->Finish();
  }
  return gate;
}

// How to do without online rotations; tesseraq has no such field.
std::string LeaveOutRotation(const Job& job) {
  if (job.method_row->name != "quarot") return "";
  return ". Leave them out with rotation.online = false";
}

void CheckOnlineRotation(JsonObject& object, const Job& job) {
  if (!job.rotation.online) return;
  std::vector<std::string> fitting;
  for (const OutputFormatRow& row : OutputFormats()) {
    if (row.carries_online_rotation) fitting.push_back(row.name);
  }
  for (const OutputFormatRow* row : job.outputs) {
    if (row->carries_online_rotation) continue;
    object.Refuse(
        "outputs",
        StrCat("formats that carry online rotations (", Join(fitting), "), not ", row->name,
               ": no engine that reads it would rotate activations", LeaveOutRotation(job)));
  }
}

void CheckWhole(JsonObject& object, const Job& job) {
  CheckOnlineRotation(object, job);
  const bool needed = job.method_row->needs_calibration || job.method->NeedsCalibration();
  if (needed && !job.calibration) {
    object.Refuse("calibration",
                  StrCat("given: method ", job.method_row->name, " needs it with these options"));
  }
  if (job.method->NeedsPreprocessing() && !job.preprocessing) {
    object.Refuse("preprocessing",
                  StrCat("given: method ", job.method_row->name, " needs it with these options"));
  }
  const bool gate =
      job.quality_gate.max_perplexity_ratio > 0 || job.quality_gate.max_perplexity_increase > 0;
  if (gate && !job.evaluation) {
    object.Refuse("evaluation", "given: quality_gate compares what it measures");
  }
}

}  // namespace

Job ParseJob(const nlohmann::json& json) {
  JsonObject object(json, "job");
  Job job;
  job.name = object.String("job", "");
  job.uid = object.String("job_uid", "");
  job.epoch = object.Int("epoch", 0, 0, INT64_MAX);
  job.model_dir = object.Required("model_dir");
  job.seed = object.Int("seed", 0, INT64_MIN, INT64_MAX);
  ParseMethod(object, job);
  if (std::optional<JsonObject> calibration = object.Object("calibration")) {
    job.calibration = ParseCalibration(*calibration, static_cast<uint64_t>(job.seed),
                                       job.method->DefaultCalibration());
    job.method->Check({job.calibration->windows.windows, job.calibration->windows.length});
  }
  if (std::optional<JsonObject> evaluation = object.Object("evaluation")) {
    const int64_t length = job.calibration ? job.calibration->windows.length : kDefaultLength;
    job.evaluation = ParseEvaluation(*evaluation, length);
  }
  if (std::optional<JsonObject> preprocessing = object.Object("preprocessing")) {
    const int64_t length = job.calibration ? job.calibration->windows.length : kDefaultLength;
    job.preprocessing = ParsePreprocessing(*preprocessing, static_cast<uint64_t>(job.seed), length);
  }
  ParseOutputs(object, job);
  job.quality_gate = ParseGate(object);
  job.device = object.String("device", "");
  if (job.device.empty()) job.device = "auto";
  job.threads = static_cast<int>(object.Int("threads", 0, 0, JobLimits::kThreads));
  job.output_dir = object.Required("output_dir");
  job.checkpoint_dir = object.String("checkpoint_dir", "");
  job.spec_digest = object.String("spec_digest", "");
  job.spec_json = object.String("spec_json", "");
  job.traceparent = object.String("traceparent", "");
  object.Finish();
  CheckWhole(object, job);
  return job;
}

Job ReadJobFile(const std::string& path) {
  const std::string text = ReadFile(path, JobLimits::kFileBytes, "INVALID_SPEC");
  return ParseJob(ParseJson(text, path + " (EngineJob in engine.proto)", "INVALID_SPEC"));
}

}  // namespace quantry::engine
