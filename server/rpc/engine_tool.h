// Asks quantry-engine what it can do and what a job would cost, by running it
// as a short-lived, confined child with bounded output and time. Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/awaited.h"
#include "common/engine_child.h"
#include "quantry/v1/engine.pb.h"
#include "quantry/v1/quantization_service.pb.h"

namespace quantry::server {

// What the fleet's engine can do.
struct EngineCapabilities {
  std::vector<v1::MethodDescription> methods;
  std::vector<std::string> architectures;  // model_type values
  std::string version;
};

class EngineTool {
 public:
  virtual ~EngineTool() = default;
  // `quantry-engine methods`. NOT_FOUND FILE_NOT_FOUND without the program,
  // INTERNAL ENGINE_PROTOCOL when its answer makes no sense, DEADLINE_EXCEEDED, or
  // what `awaited` says, as below.
  virtual absl::StatusOr<EngineCapabilities> Capabilities(const Awaited& awaited) = 0;
  // `quantry-engine quote --job FILE`; inputs that do not lie in `folders` are closed
  // to it, but with none all are open. Problems of the job are in the quote;
  // errors are the engine's own reasons (INVALID_CHECKPOINT, ...),
  // DEADLINE_EXCEEDED, or what `awaited` says, which is asked on this thread a few
  // times a second; those of this machine, as above, name places on it. No engine is
  // left when this returns.
  virtual absl::StatusOr<v1::Quote> QuoteJob(const v1::EngineJob& job,
                                             const std::vector<std::string>& folders,
                                             std::chrono::milliseconds timeout,
                                             const Awaited& awaited) = 0;
};

// Asks an engine in the background until it answers once: loading the engine's
// libraries from a cold disk takes seconds, sometimes more than it is given, and a
// server must not wait for that to listen. Thread-safe.
class CapabilitiesCache {
 public:
  using Result = absl::StatusOr<EngineCapabilities>;
  static constexpr std::chrono::milliseconds kAgain{30'000};

  // `on_answer` runs on the background thread: for the capabilities, and for a failure
  // that is not the same as the one before. `engine` outlives the object; after a
  // failure it is asked again `again` later.
  CapabilitiesCache(EngineTool* engine, std::function<void(const Result&)> on_answer,
                    std::chrono::milliseconds again = kAgain);

  // Waits at most `wait` for the first answer. UNAVAILABLE until it is there; then
  // the capabilities, or how the engine failed last.
  Result Get(std::chrono::milliseconds wait) const;
  // Whether Get answers at once.
  bool answered() const;

 private:
  // The engine's answer, kept for Get. True when there is nothing more to ask.
  bool Ask(EngineTool& engine, const std::stop_token& stop,
           const std::function<void(const Result&)>& on_answer);

  mutable std::mutex mutex_;
  mutable std::condition_variable_any answered_;
  std::optional<Result> result_;  // guarded by mutex_
  std::jthread thread_;           // last: it uses the others
};

// `scratch_dir` gets job files for the time of a call.
std::unique_ptr<EngineTool> NewEngineTool(std::string engine_binary, std::string scratch_dir,
                                          EngineConfinement confinement);

// What `quantry-engine methods` printed; for tests.
absl::StatusOr<EngineCapabilities> ParseCapabilities(const std::string& json);

}  // namespace quantry::server
