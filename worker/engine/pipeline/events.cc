#include "worker/engine/pipeline/events.h"

#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;

// Names from somebody else's files may be megabytes long. The server keeps an
// error in the job's row and takes 8 KiB of message, the agent 1 MiB a line.
constexpr size_t kMaxMessageBytes = 6 << 10;
constexpr size_t kMaxValueBytes = 2 << 10;

// The first bytes of a UTF-8 text, cut between characters; "..." follows where
// something was cut.
std::string Shortened(std::string_view text, size_t limit) {
  constexpr size_t kMostContinuations = 3;
  if (text.size() <= limit) return std::string(text);
  size_t end = limit;
  while (end > 0 && limit - end < kMostContinuations &&
         (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) {
    --end;
  }
  return std::string(text.substr(0, end)) + "...";
}

std::string ClassName(FailureClass failure_class) {
  switch (failure_class) {
    case FailureClass::kUser:
      return "FAILURE_CLASS_USER";
    case FailureClass::kEnvironment:
      return "FAILURE_CLASS_ENVIRONMENT";
    case FailureClass::kResource:
      return "FAILURE_CLASS_RESOURCE";
    case FailureClass::kBug:
      return "FAILURE_CLASS_BUG";
  }
  return "FAILURE_CLASS_UNSPECIFIED";
}

}  // namespace

std::string StageName(Stage stage) {
  switch (stage) {
    case Stage::kLoading:
      return "STAGE_LOADING";
    case Stage::kCalibrating:
      return "STAGE_CALIBRATING";
    case Stage::kPreprocessing:
      return "STAGE_PREPROCESSING";
    case Stage::kQuantizing:
      return "STAGE_QUANTIZING";
    case Stage::kPacking:
      return "STAGE_PACKING";
    case Stage::kEvaluating:
      return "STAGE_EVALUATING";
  }
  return "STAGE_UNSPECIFIED";
}

Json Finite(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json WithoutNulls(const Json& json) {
  if (!json.is_structured()) return json;
  Json kept = json.is_array() ? Json::array() : Json::object();
  for (const auto& [name, value] : json.items()) {
    if (json.is_array()) {
      kept.push_back(WithoutNulls(value));
    } else if (!value.is_null()) {
      kept[name] = WithoutNulls(value);
    }
  }
  return kept;
}

Json ToJson(const BlockReport& report) {
  Json metrics = Json::object();
  for (const auto& [name, value] : report.metrics) {
    if (std::isfinite(value)) metrics[name] = value;
  }
  return {{"index", report.index},
          {"loss_rtn", Finite(report.loss_rtn)},
          {"loss_final", Finite(report.loss_final)},
          {"seconds", Finite(report.seconds)},
          {"metrics", metrics}};
}

Json ToJson(const HashedFile& file) {
  return {{"path", file.path}, {"size_bytes", file.bytes}, {"sha256", file.sha256}};
}

void EventWriter::Write(const std::string& kind, const Json& body) {
  Json event = Json::object();
  event[kind] = WithoutNulls(body);
  const std::string line = event.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  size_t written = 0;
  while (written < line.size()) {
    const ssize_t count = ::write(fd_, line.data() + written, line.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      throw EngineError(FailureClass::kEnvironment, "EVENTS_CLOSED",
                        std::string("writing an event to stdout: ") + std::strerror(errno));
    }
    written += static_cast<size_t>(count);
  }
}

void EventWriter::Started(const std::string& device, int blocks_total, int resumed_blocks,
                          int64_t parameters) {
  Write("started", {{"engine_version", QUANTRY_VERSION},
                    {"device", device},
                    {"blocks_total", blocks_total},
                    {"resumed_blocks", resumed_blocks},
                    {"parameters", parameters}});
}

void EventWriter::StageChanged(Stage stage) { Write("stage", StageName(stage)); }

void EventWriter::Progress(const Json& progress) { Write("progress", progress); }

void EventWriter::BlockDone(const BlockReport& report) { Write("block_done", ToJson(report)); }

void EventWriter::Checkpoint(int blocks_done, const std::vector<HashedFile>& files) {
  Json list = Json::array();
  for (const HashedFile& file : files) list.push_back(ToJson(file));
  Write("checkpoint", {{"blocks_done", blocks_done}, {"files", list}});
}

void EventWriter::Log(const std::string& level, const std::string& message) {
  Json body = {{"level", level}, {"message", message}};
  if (!trace_id_.empty()) body["trace_id"] = trace_id_;
  Write("log", body);
}

void EventWriter::Info(const std::string& message) { Log("LEVEL_INFO", message); }
void EventWriter::Warning(const std::string& message) { Log("LEVEL_WARNING", message); }

void EventWriter::Completed(const std::string& manifest_sha256, bool quality_gate_failed) {
  Write("completed",
        {{"manifest_sha256", manifest_sha256}, {"quality_gate_failed", quality_gate_failed}});
}

void EventWriter::Error(const EngineError& error) {
  Json metadata = Json::object();
  for (const auto& [name, value] : error.metadata) {
    metadata[name] = Shortened(value, kMaxValueBytes);
  }
  if (!trace_id_.empty()) metadata["trace_id"] = trace_id_;
  Write("error", {{"failure_class", ClassName(error.failure_class)},
                  {"reason", error.reason},
                  {"message", Shortened(error.what(), kMaxMessageBytes)},
                  {"metadata", metadata}});
}

}  // namespace quantry::engine
