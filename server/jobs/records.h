#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "server/jobs/job.h"

// What the SQL stores keep beside a job, as they read and write it.
namespace quantry::server {

// not_before of a queued job that waits for another one's result.
inline constexpr Time kParked = Time(std::chrono::hours(24 * 365 * 1000));

// A job's row in `queue`: there is one while it has not ended.
struct QueueRow {
  int64_t pk = 0;
  JobState state = JobState::kQueued;
  int64_t epoch = 0;
  std::string worker_id;
  int max_attempts = 0;
  Duration max_pending{};  // 0 = none
  Duration max_run{};      // 0 = none
  Duration max_no_progress{};
  Duration run_used{};  // by earlier attempts
  int losses_since_checkpoint = 0;
  Time claim_time;
  Time cancel_time;
  Time lease_until;
  int64_t steps_done = 0;
  Time progress_time;
  int64_t next_event_offset = 0;
};

struct WorkerRow {
  std::string worker_id;
  std::string incarnation;
  std::string session;
  v1::WorkerInfo info;
  Time last_seen;
  bool draining = false;
  bool terminate = false;
  std::string refusal;
};

// A change of state with its event; everything that hangs on the state goes
// with it: times, the queue row, the version.
struct StateChange {
  int64_t pk = 0;
  JobState from = JobState::kQueued;
  JobState to = JobState::kQueued;
  int64_t epoch = 0;  // attempt that caused it; 0 = server or client
  std::string reason = {};
  std::optional<google::rpc::Status> error = {};
  Duration delay{};  // to QUEUED only: backoff
};

}  // namespace quantry::server
