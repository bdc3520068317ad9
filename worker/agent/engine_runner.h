#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/engine_child.h"
#include "quantry/v1/engine.pb.h"
#include "worker/agent/job_session.h"

namespace quantry::agent {

struct EngineOptions {
  std::string binary;
  // Between SIGTERM and SIGKILL when a job is stopped; below the 5 s promised
  // for a cancel.
  std::chrono::milliseconds kill_grace{1500};
  EngineConfinement confinement{};
};

// How one run of the engine ended.
struct EngineOutcome {
  enum class Kind { kCompleted, kFailed, kStopped };
  Kind kind = Kind::kFailed;
  v1::EngineCompleted completed;  // kCompleted
  v1::EngineError error;          // kFailed
  int exit_code = 0;
  int exit_signal = 0;
  std::string log_tail;  // last 16 KiB of stderr
};

// Called for each event, on the thread that runs the engine.
using EngineSink = std::function<void(const v1::EngineEvent&)>;

// Parses one line of the engine's stdout. INVALID_ARGUMENT for anything that is
// not an EngineEvent; fields of newer engines are ignored.
absl::StatusOr<v1::EngineEvent> ParseEngineEvent(std::string_view line);

// EngineJob as proto JSON with the names as declared.
absl::StatusOr<std::string> EngineJobJson(const v1::EngineJob& job);

// Starts one engine per call and stays with it to its end. The engine is
// confined (common/engine_child.h), gets no descriptors but its pipes, a
// process group of its own, and dies with the agent's thread.
class EngineRunner {
 public:
  explicit EngineRunner(EngineOptions options) : options_(std::move(options)) {}

  // `quantry-engine run --job job_file` in `folder`, where it may open what
  // `access` says and no other file. Polls `session` for reasons
  // to stop at least every 100 ms; with kRelease the engine ends right after
  // its next `checkpoint` event was handed to `sink`.
  EngineOutcome Run(const std::string& job_file, const std::string& folder,
                    const EngineAccess& access, const JobSession& session,
                    const EngineSink& sink) const;
  const EngineConfinement& confinement() const { return options_.confinement; }

 private:
  EngineOptions options_;
};

// The names in what `quantry-engine methods` prints, the proto JSON of
// ListMethodsResponse and more.
absl::StatusOr<std::vector<std::string>> MethodNames(const std::string& json);

// OK where `device` (cuda or cuda:N) is among what `quantry-engine devices` prints, else why not.
absl::Status FindDevice(const std::string& device, const std::string& json);

// What a signal, an exit status or a silent end means; `oom` says that the
// kernel killed something for memory meanwhile.
v1::EngineError ClassifyExit(int exit_code, int exit_signal, bool oom, std::string_view log_tail);

// Kills for lack of memory in this process's cgroup so far; 0 when unknown.
std::int64_t OomKillCount();

// "quantry-engine --version" and the method names of "quantry-engine methods".
struct EngineAbilities {
  std::string version;
  std::vector<std::string> methods;
  std::string confinement;  // for the log
};
absl::StatusOr<EngineAbilities> ProbeEngine(const EngineOptions& options);

// Whether engines can compute on the device that the worker's --device names for every job.
// Always OK for auto and cpu.
absl::Status ProbeDevice(const EngineOptions& options, const std::string& device);

}  // namespace quantry::agent
