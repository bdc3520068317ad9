#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "client/cli/backoff.h"
#include "client/cli/connection.h"
#include "client/cli/progress.h"
#include "client/cli/status_line.h"

namespace quantry::cli {

struct WatchLimits {
  // Give up waiting for the job after this long. Unset: never.
  std::optional<std::chrono::milliseconds> wait;
  // Give up on the server when it has been away this long.
  std::chrono::milliseconds away = std::chrono::seconds(150);
};

// How a wait ended without an error.
enum class WaitEnd { kEnded, kTimedOut, kInterrupted };

// Follows one job to its end, drawing progress. A broken connection is taken up
// again after the last event seen, with jittered waits, so that the job's story
// has no gap whatever happens to the server.
class Watcher {
 public:
  // `connection` and `line` outlive the watcher.
  Watcher(Connection& connection, StatusLine& line, WatchLimits limits);

  // Errors: NOT_FOUND when the job was deleted, UNAVAILABLE when the server
  // stayed away, PERMISSION_DENIED. view() tells how far it came in any case.
  absl::StatusOr<WaitEnd> Follow(const std::string& job_name);

  const JobView& view() const { return view_; }

 private:
  // One stream, from the last sequence to its end. `heard` is set when it
  // brought a message.
  absl::Status Stream(const std::string& job_name, bool* heard);
  void Show(const v1::WatchQuantizationJobResponse& message);
  void Say(const std::string& line);
  bool TimedOut() const;
  bool Interrupted() const;
  // What to do after a stream that did not end the job: OK = try again.
  absl::Status AfterBreak(const absl::Status& broken, bool heard);

  Connection& connection_;
  StatusLine& line_;
  const WatchLimits limits_;
  const std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_heard_;
  std::chrono::steady_clock::time_point last_said_;
  Backoff backoff_;
  bool said_lost_ = false;
  JobView view_;
};

}  // namespace quantry::cli
