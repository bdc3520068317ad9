#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/jobs/job.h"
#include "server/jobs/job_store.h"
#include "server/jobs/policy.h"
#include "server/jobs/postgres/database.h"
#include "server/jobs/records.h"

// Reading and locking rows, and the few writes every operation shares. All
// functions run inside the caller's transaction; database errors stick to `db`.
//
// Who changes a job holds the lock of its queue row (while there is one) and
// then that of its row in jobs, always in this order; the row of a quota comes
// between the two, and nobody waits for one while it holds another's. A submit takes the quota's
// and then that of the job whose result it shares, a retry the quota's and that of its job, which
// has no queue row. Who only writes progress and events of an attempt holds the queue row's alone.
// Events are appended under one of these locks, so their sequences have no gaps. Who ends a job
// then locks those that wait for its result, which are younger than it is.
namespace quantry::server::postgres {

// What every call needs: the transaction, the limits, the time, and random
// numbers for backoff.
struct Context {
  Database& db;
  const JobPolicy& policy;
  Time now;
  const std::function<uint64_t()>& random;
};

std::optional<int64_t> FindJob(Database& db, const JobKey& key);
// Finds and locks it; nullopt = there is none.
std::optional<int64_t> LockJob(Database& db, const JobKey& key);
// Locks both rows by pk; false = the job is gone.
bool LockJob(Database& db, int64_t pk);
// Of a job that is to have no queue row: the caller must see that it has ended.
bool LockEndedJob(Database& db, int64_t pk);

// Columns of a whole job, from jobs j; JobOf reads them.
std::string SelectJobs(const std::string& where_and_order);
Job JobOf(Rows& rows);
// The job must exist.
Job ReadJob(Database& db, int64_t pk);
JobKey ReadKey(Database& db, int64_t pk);

// Locked.
std::optional<QueueRow> LockQueueRow(Database& db, int64_t pk);
// Not locked.
std::vector<QueueRow> ReadLeased(Database& db);
// Locked.
std::vector<QueueRow> LockLeasedBy(Database& db, const std::string& worker_id);
std::optional<WorkerRow> FindWorkerBySession(Database& db, const std::string& session);
std::optional<WorkerRow> LockWorker(Database& db, const std::string& worker_id);
// By id, those after `after`.
std::vector<WorkerRow> ReadWorkers(Database& db, const std::string& after, int limit);
std::optional<QueuePause> ReadPause(Database& db);

// A text[] literal: {"a","b"}.
std::string TextArray(const std::vector<std::string>& texts);

// Gives the event the job's next sequence and stores it.
void AppendEvent(Database& db, int64_t pk, int64_t epoch, Time now, v1::JobEvent event);
// The job must be locked. Errors: INTERNAL for a transition outside the table.
absl::Status ChangeState(Database& db, const StateChange& change, Time now);

}  // namespace quantry::server::postgres
