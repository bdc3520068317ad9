#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "worker/engine/evaluation/evaluator.h"
#include "worker/engine/export/accounting.h"
#include "worker/engine/export/exporter.h"
#include "worker/engine/nn/products.h"
#include "worker/engine/pipeline/events.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/pipeline/restoration.h"

namespace quantry::engine {

// Manifest of artifact.proto: what a job leaves behind and how it came to be.
struct Manifest {
  std::vector<HashedFile> files;   // every file of the artifact but manifest.json
  std::vector<HashedFile> inputs;  // what was read; paths are file names, not places
  std::vector<BlockReport> blocks;
  BitAccounting bits;
  std::optional<EvaluationResult> quality;
  std::optional<RestorationResult> preprocessing;
  int64_t evaluation_length = 0;
  double run_seconds = 0;
  std::map<std::string, double> stage_seconds;
  std::vector<OutputSummary> outputs;
  int64_t peak_rss_bytes = 0;
  std::string device;
  std::string device_type;  // "cpu" or "cuda"; of the report, as the next two
  int threads = 0;
  ComputeDtype compute = ComputeDtype::kFloat32;  // of training's products
  std::string base_model;                         // "org/name" where config.json tells it, else ""
  std::string model_type;
  bool quality_gate_failed = false;
  std::vector<std::string> warnings;
  std::string create_time;  // RFC 3339
};

// Manifest of artifact.proto as JSON, without nulls.
nlohmann::ordered_json ManifestJson(const Job& job, const Manifest& manifest);

// Writes OUTPUT_DIR/manifest.json atomically; returns its SHA-256.
std::string WriteManifest(const Job& job, const Manifest& manifest);

// Whether what was measured breaks the job's gate.
bool GateFails(const QualityGate& gate, const EvaluationResult& quality);

}  // namespace quantry::engine
