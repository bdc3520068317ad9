#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "worker/engine/base/error.h"

namespace quantry::engine {

// Stages an engine goes through (Stage in job.proto).
enum class Stage { kLoading, kPreprocessing, kCalibrating, kQuantizing, kPacking, kEvaluating };
std::string StageName(Stage stage);  // "STAGE_LOADING"

// BlockReport in artifact.proto.
struct BlockReport {
  int index = 0;
  double loss_rtn = 0;
  double loss_final = 0;
  double seconds = 0;
  std::map<std::string, double> metrics;
};
nlohmann::ordered_json ToJson(const BlockReport& report);

// ArtifactFile in artifact.proto.
struct HashedFile {
  std::string path;
  uint64_t bytes = 0;
  std::string sha256;
};
nlohmann::ordered_json ToJson(const HashedFile& file);

// `value` when finite, else null: JSON knows no NaN.
nlohmann::ordered_json Finite(double value);
// Takes fields of null out, at every depth; events and manifests have none.
nlohmann::ordered_json WithoutNulls(const nlohmann::ordered_json& json);

// Writes EngineEvents (engine.proto), one JSON object a line, to a descriptor.
// Every line goes out in one write. Not thread-safe. A reader that went away
// (EPIPE) is EngineError ENVIRONMENT "EVENTS_CLOSED".
class EventWriter {
 public:
  explicit EventWriter(int fd) : fd_(fd) {}

  // From now on log and error events carry `trace_id`; "" = none.
  void SetTrace(std::string trace_id) { trace_id_ = std::move(trace_id); }

  void Started(const std::string& device, int blocks_total, int resumed_blocks, int64_t parameters);
  void StageChanged(Stage stage);
  void Progress(const nlohmann::ordered_json& progress);
  void BlockDone(const BlockReport& report);
  void Checkpoint(int blocks_done, const std::vector<HashedFile>& files);
  void Info(const std::string& message);
  void Warning(const std::string& message);
  void Completed(const std::string& manifest_sha256, bool quality_gate_failed);
  void Error(const EngineError& error);  // long texts are cut

 private:
  void Write(const std::string& kind, const nlohmann::ordered_json& body);
  void Log(const std::string& level, const std::string& message);

  int fd_;
  std::string trace_id_;
};

}  // namespace quantry::engine
