// The text side of the engine's contract: job file, events, exit statuses.
#include <csignal>
#include <cstring>

#include "common/errors.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "quantry/v1/quantization_service.pb.h"
#include "worker/agent/engine_runner.h"

namespace quantry::agent {
namespace {

using google::protobuf::util::JsonParseOptions;
using google::protobuf::util::JsonPrintOptions;

std::string LastLine(std::string_view log) {
  while (log.ends_with('\n')) log.remove_suffix(1);
  const std::size_t newline = log.rfind('\n');
  const std::string_view line = newline == std::string_view::npos ? log : log.substr(newline + 1);
  return std::string(line.substr(0, 500));
}

}  // namespace

absl::StatusOr<v1::EngineEvent> ParseEngineEvent(std::string_view line) {
  v1::EngineEvent event;
  JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto status =
      google::protobuf::util::JsonStringToMessage(std::string(line), &event, options);
  if (!status.ok()) {
    return absl::InvalidArgumentError("not an engine event: " + std::string(status.message()));
  }
  return event;
}

absl::StatusOr<std::string> EngineJobJson(const v1::EngineJob& job) {
  JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.add_whitespace = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(job, &json, options);
  if (!status.ok()) return absl::InternalError(std::string(status.message()));
  return json;
}

absl::StatusOr<std::vector<std::string>> MethodNames(const std::string& json) {
  v1::ListMethodsResponse response;
  JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto status = google::protobuf::util::JsonStringToMessage(json, &response, options);
  if (!status.ok() || response.methods().empty()) {
    return MakeError(
        Reason::kEngineProtocol,
        "quantry-engine methods: wanted {\"methods\": [...]}, got \"" + json.substr(0, 100) + "\"");
  }
  std::vector<std::string> names;
  for (const v1::MethodDescription& method : response.methods()) names.push_back(method.name());
  return names;
}

absl::Status FindDevice(const std::string& device, const std::string& json) {
  google::protobuf::Struct found;
  if (!google::protobuf::util::JsonStringToMessage(json, &found).ok()) {
    return MakeError(
        Reason::kEngineProtocol,
        "quantry-engine devices: wanted a JSON object, got \"" + json.substr(0, 100) + "\"");
  }
  const std::string wanted = device == "cuda" ? "cuda:0" : device;
  std::string usable;
  for (const auto& name : (*found.mutable_fields())["devices"].list_value().values()) {
    if (name.string_value() == wanted) return absl::OkStatus();
    usable += (usable.empty() ? "" : ", ") + name.string_value();
  }
  const std::string& problem = (*found.mutable_fields())["cuda_problem"].string_value();
  return MakeError(Reason::kDeviceUnavailable,
                   "--device=" + device + ": wanted a device that the engine can use (" + usable +
                       ")" + (problem.empty() ? "" : "; of GPUs it says: " + problem) +
                       "; with --device=auto the worker computes on what is there",
                   {{"device", device}});
}

v1::EngineError ClassifyExit(int exit_code, int exit_signal, bool oom, std::string_view log_tail) {
  v1::EngineError error;
  const std::string last = LastLine(log_tail);
  const std::string hint = last.empty() ? "" : "; it last said: " + last;
  if (exit_signal == SIGKILL && oom) {
    error.set_failure_class(v1::FAILURE_CLASS_RESOURCE);
    error.set_reason(std::string(ReasonName(Reason::kOutOfMemory)));
    error.set_message(
        "the kernel killed the engine for lack of memory; use fewer calibration samples, shorter "
        "sequences or a worker with more memory" +
        hint);
    return error;
  }
  error.set_failure_class(v1::FAILURE_CLASS_BUG);
  const bool crashed = exit_signal != 0 || exit_code > 1;
  error.set_reason(
      std::string(ReasonName(crashed ? Reason::kEngineCrashed : Reason::kEngineProtocol)));
  if (exit_signal != 0) {
    const char* name = strsignal(exit_signal);
    error.set_message("the engine was ended by signal " + std::to_string(exit_signal) + " (" +
                      (name == nullptr ? "unknown" : name) + ")" + hint);
    (*error.mutable_metadata())["signal"] = std::to_string(exit_signal);
  } else {
    error.set_message("the engine exited with status " + std::to_string(exit_code) +
                      " without saying how the job ended" + hint);
    (*error.mutable_metadata())["exit_code"] = std::to_string(exit_code);
  }
  return error;
}

}  // namespace quantry::agent
