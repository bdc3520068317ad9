#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/jobs/job.h"
#include "server/jobs/job_store.h"
#include "server/jobs/records.h"
#include "server/jobs/sqlite/database.h"

// Reading rows, and the few writes every operation shares. All functions run
// inside the caller's transaction; database errors stick to `db`.
namespace quantry::server::sqlite {

std::optional<int64_t> FindJob(Database& db, const JobKey& key);
// The job must exist.
Job ReadJob(Database& db, int64_t pk);
JobKey ReadKey(Database& db, int64_t pk);
// Locked as all rows are: by the one transaction that writes.
std::optional<QueueRow> LockQueueRow(Database& db, int64_t pk);
std::vector<QueueRow> ReadLeased(Database& db);
std::vector<QueueRow> ReadLeasedBy(Database& db, const std::string& worker_id);
std::optional<WorkerRow> FindWorkerBySession(Database& db, const std::string& session);
std::optional<WorkerRow> FindWorkerById(Database& db, const std::string& worker_id);

std::optional<QueuePause> ReadPause(Database& db);

// Gives the event the job's next sequence and stores it.
void AppendEvent(Database& db, int64_t pk, int64_t epoch, Time now, v1::JobEvent event);

// Errors: INTERNAL for a transition outside the table.
absl::Status ChangeState(Database& db, const StateChange& change, Time now);

}  // namespace quantry::server::sqlite
