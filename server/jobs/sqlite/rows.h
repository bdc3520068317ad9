#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/jobs/job.h"
#include "server/jobs/job_store.h"
#include "server/jobs/sqlite/database.h"

// Reading rows, and the few writes every operation shares. All functions run
// inside the caller's transaction; database errors stick to `db`.
namespace quantry::server::sqlite {

// A job's row in `queue`.
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

std::optional<int64_t> FindJob(Database& db, const JobKey& key);
// The job must exist.
Job ReadJob(Database& db, int64_t pk);
JobKey ReadKey(Database& db, int64_t pk);
std::optional<QueueRow> ReadQueueRow(Database& db, int64_t pk);
std::vector<QueueRow> ReadLeased(Database& db);
std::vector<QueueRow> ReadLeasedBy(Database& db, const std::string& worker_id);
std::optional<WorkerRow> FindWorkerBySession(Database& db, const std::string& session);
std::optional<WorkerRow> FindWorkerById(Database& db, const std::string& worker_id);

std::optional<QueuePause> ReadPause(Database& db);

absl::Status JobNotFound(const JobKey& key);
absl::Status LeaseLost(const JobKey& key, int64_t epoch, const std::string& why);
absl::Status UnknownWorker();

// Gives the event the job's next sequence and stores it.
void AppendEvent(Database& db, int64_t pk, int64_t epoch, Time now, v1::JobEvent event);

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

// Errors: INTERNAL for a transition outside the table.
absl::Status ChangeState(Database& db, const StateChange& change, Time now);

}  // namespace quantry::server::sqlite
