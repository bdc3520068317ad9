#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "worker/engine/calibration/dataset.h"
#include "worker/engine/export/layout.h"
#include "worker/engine/methods/catalog.h"
#include "worker/engine/reconstruct/lora.h"

namespace quantry::engine {

// Bounds of a job's numbers; larger ones are mistakes.
struct JobLimits {
  static constexpr int64_t kSamples = 1 << 20;
  static constexpr int64_t kSequenceLength = 1 << 20;
  static constexpr int64_t kThreads = 4096;
  static constexpr int64_t kSteps = int64_t{1} << 32;
  static constexpr uint64_t kFileBytes = uint64_t{16} << 20;
};

struct TextJob {
  TextSource source;
  WindowSpec windows;
};

// Adapters trained on a first pass's model (EnginePreprocessing).
struct PreprocessingJob {
  TextJob corpus;  // all windows of it
  LoraOptions lora;
  std::string json;  // as given, compact
};

struct QualityGate {
  double max_perplexity_ratio = 0;     // 0 = no gate
  double max_perplexity_increase = 0;  // 0 = no gate
};

// EngineJob of engine.proto, checked: everything that can be known without
// opening the model holds.
struct Job {
  std::string name;
  std::string uid;
  int64_t epoch = 0;
  std::string model_dir;
  std::optional<TextJob> calibration;
  std::optional<TextJob> evaluation;
  std::optional<PreprocessingJob> preprocessing;
  const MethodRow* method_row = nullptr;
  std::unique_ptr<Method> method;
  std::string method_json;  // the method's message as given, compact
  GridSpec grid;            // kReferenceGrid when the method's weights are on none
  ActivationSpec activations;
  RotationSpec rotation;
  std::vector<const OutputFormatRow*> outputs;  // distinct; the first is the primary one

  std::unique_ptr<Layout> MakeLayout(const OutputFormatRow& format,
                                     at::ScalarType scale_dtype) const {
    return CreateLayout(format, method_row->weights, grid, scale_dtype);
  }

  QualityGate quality_gate;
  int64_t seed = 0;
  std::string device = "auto";
  int threads = 0;
  std::string output_dir;
  std::string checkpoint_dir;  // empty: below output_dir, removed at the end
  std::string spec_digest;
  std::string spec_json;
  std::string traceparent;  // W3C; empty = none
};

// Throws UserError INVALID_SPEC naming the field.
Job ParseJob(const nlohmann::json& json);
Job ReadJobFile(const std::string& path);

}  // namespace quantry::engine
