#include "worker/engine/pipeline/quote.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "common/counted_text.h"
#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/evaluation/evaluator.h"
#include "worker/engine/export/accounting.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/linear_shapes.h"
#include "worker/engine/pipeline/inputs.h"
#include "worker/engine/pipeline/steps.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/reconstruct/lora.h"
#include "worker/engine/reconstruct/model_tuning.h"

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kLibraryBytes = int64_t{300} << 20;
constexpr int64_t kBlockCopies = 4;
constexpr int64_t kFloatBytes = 4;
// Activations alive at once in a block's forward pass, in widest tensors.
constexpr int64_t kAliveActivations = 6;
// Attention goes by pieces of 8 MiB (nn/block.cc): scores, mask, probabilities.
constexpr int64_t kScoreBytes = int64_t{24} << 20;

int64_t BlockBytes(const Checkpoint& checkpoint) {
  int64_t weights = 0;
  for (const LinearSpec& linear : checkpoint.architecture().linears) {
    const LinearShape shape = ShapeOf(checkpoint.config(), linear.role);
    weights += shape.out * shape.in;
  }
  return weights * kFloatBytes;
}

// Of `tokens` in a block's forward pass.
int64_t ActivationBytes(const ModelConfig& config, int64_t tokens) {
  const int64_t widest =
      std::max({config.intermediate_size, config.hidden_size, config.query_size()});
  return tokens * widest * kFloatBytes * kAliveActivations + kScoreBytes;
}

// Of all batches that are in work side by side on `device`.
int64_t BatchBytes(const Checkpoint& checkpoint, const StreamShape& stream,
                   const at::Device& device) {
  if (stream.windows == 0) return 0;
  const ModelConfig& config = checkpoint.config();
  const int64_t tokens = WindowsPerBatch(stream.length) * stream.length;
  return ActivationBytes(config, BatchWorkers(config, stream, device) * tokens);
}

// Windows of all texts stay in memory, 8 bytes a token; while one is read, so do it and its ids,
// twice. A token of real text has two bytes or more.
int64_t TextBytes(const Job& job) {
  constexpr int64_t kTextBytesPerToken = 2, kWindowBytes = 8, kReadingBytes = 8;
  const std::optional<TextJob> corpus =
      job.preprocessing ? std::optional(job.preprocessing->corpus) : std::nullopt;
  int64_t windows = 0, reading = 0;
  for (const auto* text : {&job.calibration, &job.evaluation, &corpus}) {
    if (!*text) continue;
    std::error_code unknown;
    const uintmax_t size = std::filesystem::file_size((*text)->source.path, unknown);
    const int64_t bytes = unknown ? 0 : static_cast<int64_t>(size);
    const int64_t tokens = bytes / kTextBytesPerToken;
    const WindowSpec& spec = (*text)->windows;
    windows += kWindowBytes * (spec.windows > 0 ? spec.windows * spec.length : tokens);
    reading = std::max(reading, bytes + kReadingBytes * tokens);
  }
  return windows + reading;
}

StreamShape ShapeOfText(const std::optional<TextJob>& text) {
  if (!text) return {};
  return {text->windows.windows, text->windows.length};
}

// What the job itself is to blame for; a file that cannot be read just now, or
// memory that is short, is no property of the job.
void AddProblem(const EngineError& error, Json& problems) {
  if (error.failure_class != FailureClass::kUser) throw error;
  problems.push_back(error.reason + ": " + error.what());
}

// A file that must be there for the job to start.
void CheckFile(const std::string& what, const std::string& path, Json& problems) {
  if (!IsRegularFile(path)) problems.push_back(what + " is not a file: " + path);
}

// The size of a file; too large for everything where it has none.
uintmax_t SizeOf(const std::string& path) {
  std::error_code unknown;  // the size is then the largest there is
  return std::filesystem::file_size(path, unknown);
}

// Whether a file's bytes leave no doubt that it holds its windows, or it takes too
// much to count. Real text has fewer than six bytes a token; a token id has up to six
// digits, a comma and a space, and whoever prints it prettily adds more.
bool NeedsNoCount(const TextJob& text, const std::string& tokenizer) {
  constexpr uintmax_t kAmpleBytesPerToken = 6, kAmpleBytesPerId = 12;
  constexpr uintmax_t kMostTokenizerBytes = uintmax_t{32} << 20;
  const WindowSpec& spec = text.windows;
  const int64_t wanted =
      spec.sampling == Sampling::kRandom ? 1 : std::max<int64_t>(spec.windows, 1);
  const bool words = text.source.format == TextFormat::kText;
  const uintmax_t size = SizeOf(text.source.path);
  return size > static_cast<uintmax_t>(kMostCountedTextBytes) ||
         (words && SizeOf(tokenizer) > kMostTokenizerBytes) ||
         size / (words ? kAmpleBytesPerToken : kAmpleBytesPerId) >=
             static_cast<uintmax_t>(wanted * spec.length);
}

void CheckInputs(const Job& job, const Checkpoint& checkpoint, Json& problems) {
  const auto note = [&](const auto& check) {
    try {
      check();
    } catch (const EngineError& error) {
      AddProblem(error, problems);
    }
  };
  note([&] { CheckSource(checkpoint); });
  note([&] {
    CheckGrid(job.grid, LinearWidths(checkpoint.architecture(), checkpoint.config()));
    CheckOutputs(job, checkpoint);
  });
  if (job.rotation.enabled) {
    note([&] { Rotation(checkpoint.architecture(), checkpoint.config(), job.rotation.online, 0); });
  }
  const std::optional<TextJob> corpus =
      job.preprocessing ? std::optional(job.preprocessing->corpus) : std::nullopt;
  if (job.preprocessing) {
    note([&] {
      CheckLora(job.preprocessing->lora, checkpoint.architecture(), checkpoint.config());
    });
  }
  const std::string tokenizer_path = job.model_dir + "/tokenizer.json";
  std::shared_ptr<const Tokenizer> tokenizer;
  for (const auto* text : {&job.calibration, &job.evaluation, &corpus}) {
    if (!*text) continue;
    note([&] {
      CheckSequenceLength(checkpoint.architecture(), checkpoint.config(), (*text)->windows.length);
    });
    CheckFile((*text)->source.what + " text", (*text)->source.path, problems);
    note([&] { CheckTextSize((*text)->source, (*text)->windows); });
    if ((*text)->source.format == TextFormat::kText) {
      CheckFile("tokenizer", tokenizer_path, problems);
    }
    if (!problems.empty() || NeedsNoCount(**text, tokenizer_path)) continue;
    note([&] { CheckWindows(job, **text, checkpoint, tokenizer); });
  }
}

// What is written, and how many bits the method's own numbers take.
void AddOutputs(const Job& job, const Checkpoint& checkpoint, Json& quote) {
  std::vector<PlannedTensor> plan =
      PlanTensors(checkpoint, [&](int, const std::string&, int64_t in_features) {
        return job.method->SalientColumns(in_features);
      });
  StateValueBits(*job.method, plan);
  // A rotated model cannot share its head with the embedding.
  if (job.rotation.enabled && checkpoint.config().tie_word_embeddings) {
    const TensorInfo& embedding = checkpoint.Info(checkpoint.EmbeddingName());
    PlannedTensor& head = plan.emplace_back();
    head.source = checkpoint.EmbeddingName();
    head.written = checkpoint.architecture().head;
    head.dense = {head.written, embedding.dtype, embedding.shape};
  }
  const at::ScalarType scale_dtype = ScaleDtypeOf(checkpoint);
  for (const OutputFormatRow* row : job.outputs) {
    const auto layout = job.MakeLayout(*row, scale_dtype);
    if (row == job.outputs.front()) {
      quote["bits_per_weight"] = CountBits(checkpoint, plan, *layout, 0).linears;
    }
    quote["outputs"].push_back({{"format", row->enum_name},
                                {"bytes", OutputBytes(plan, *layout)},
                                {"bits_per_weight", StoredBitsPerWeight(plan, *layout)}});
  }
}

// What the method holds beside blocks and streams where `device` computes.
// Adapters come between the two passes and tuning after the last block, so the
// largest of them counts.
int64_t MethodBytes(const Job& job, const Checkpoint& checkpoint, const StreamShape& stream,
                    const at::Device& device) {
  const Architecture& architecture = checkpoint.architecture();
  const ModelConfig& config = checkpoint.config();
  int64_t most = job.method->WorkingBytes(architecture, config, stream, device);
  if (job.preprocessing) {
    most =
        std::max(most, job.method->FirstPass().WorkingBytes(architecture, config, stream, device));
    most = std::max(most, LoraBytes(job.preprocessing->lora, architecture, config,
                                    job.preprocessing->corpus.windows.length, device));
  }
  if (const ModelTuningOptions* tuning = job.method->Tuning()) {
    most = std::max(most,
                    TuningBytes(*tuning, checkpoint, job.grid.group_size, stream.length, device));
  }
  return most;
}

// What evaluation takes where `device` computes: copies of a block, a batch's activations, on the
// host a chunk's streams, and between the passes of preprocessing the whole model.
int64_t EvaluationBytes(const Job& job, const Checkpoint& checkpoint,
                        const StreamShape& calibration, const at::Device& device) {
  if (!job.evaluation) return 0;
  const ModelConfig& config = checkpoint.config();
  const WindowSpec& spec = job.evaluation->windows;
  const int64_t length = spec.length;
  const int64_t window = 2 * length * config.hidden_size * kFloatBytes;  // of both chains
  int64_t streams =
      EvaluationStreamBytes(calibration.windows * calibration.length, config.hidden_size);
  if (spec.windows > 0) streams = std::min(streams, spec.windows * window);
  streams = std::max(streams, window);
  const int64_t blocks = kBlockCopies + (job.preprocessing ? config.num_layers : 0);
  return blocks * BlockBytes(checkpoint) +
         ActivationBytes(config, EvaluationBatch(length) * length) +
         (device.is_cpu() ? streams : 0);
}

// Peak of the host's memory: that of the blocks, before them that of rotating the model, or
// that of evaluation.
int64_t JobBytes(const Job& job, const Checkpoint& checkpoint, const StreamShape& calibration) {
  const int64_t blocks = HostMemoryBytes(checkpoint, calibration) +
                         MethodBytes(job, checkpoint, calibration, at::kCPU);
  const int64_t rotating = job.rotation.enabled ? kLibraryBytes + RotatingBytes(checkpoint) : 0;
  const int64_t evaluating =
      kLibraryBytes + EvaluationBytes(job, checkpoint, calibration, at::kCPU);
  return TextBytes(job) + std::max({blocks, rotating, evaluating});
}

}  // namespace

int64_t HostMemoryBytes(const Checkpoint& checkpoint, const StreamShape& calibration) {
  const int64_t streams =
      2 * calibration.windows * calibration.length * checkpoint.config().hidden_size * kFloatBytes;
  return streams + kBlockCopies * BlockBytes(checkpoint) +
         BatchBytes(checkpoint, calibration, at::kCPU) + kLibraryBytes;
}

int64_t DeviceMemoryBytes(const Checkpoint& checkpoint, const StreamShape& calibration) {
  return kBlockCopies * BlockBytes(checkpoint) + BatchBytes(checkpoint, calibration, at::kCUDA);
}

Json QuoteJson(const Job& job) {
  Json problems = Json::array();
  std::shared_ptr<const Checkpoint> checkpoint;
  try {
    checkpoint = Checkpoint::Open(job.model_dir);
  } catch (const EngineError& error) {
    AddProblem(error, problems);
    return {{"problems", problems}};
  }
  CheckInputs(job, *checkpoint, problems);
  const StreamShape calibration = ShapeOfText(job.calibration);
  // All windows of a text (0) cannot be counted without reading it: at least 1.
  StreamShape evaluation = ShapeOfText(job.evaluation);
  if (job.evaluation) evaluation.windows = std::max<int64_t>(evaluation.windows, 1);
  const int64_t on_device = std::max(DeviceMemoryBytes(*checkpoint, calibration) +
                                         MethodBytes(job, *checkpoint, calibration, at::kCUDA),
                                     EvaluationBytes(job, *checkpoint, calibration, at::kCUDA));
  EvaluationOptions measuring;
  measuring.max_stream_bytes = EvaluationStreamBytes(calibration.windows * calibration.length,
                                                     checkpoint->config().hidden_size);
  Json quote = {{"steps", PlanSteps(job, *checkpoint, calibration, evaluation, measuring).total()},
                {"blocks", checkpoint->config().num_layers},
                {"parameters", checkpoint->parameters()},
                {"host_memory_bytes", JobBytes(job, *checkpoint, calibration)},
                {"device_memory_bytes", on_device},
                {"bits_per_weight", 0.0},
                {"outputs", Json::array()}};
  if (problems.empty()) AddOutputs(job, *checkpoint, quote);
  quote["problems"] = problems;
  return quote;
}

}  // namespace quantry::engine
