#pragma once

#include <random>

#include "server/jobs/job_store.h"
#include "server/jobs/operator_view.h"
#include "server/jobs/policy.h"
#include "server/jobs/sqlite/database.h"
#include "server/jobs/sqlite/rows.h"

// The worker side of JobStore, each inside the caller's transaction.
namespace quantry::server::sqlite {

// What every call needs: the transaction, the limits, the time, and random
// numbers for backoff.
struct Context {
  Database& db;
  const JobPolicy& policy;
  Time now;
  std::mt19937_64& random;
};

absl::StatusOr<int> RegisterWorker(const Context& context, const v1::WorkerInfo& worker,
                                   const std::string& session);
absl::StatusOr<std::optional<Grant>> Acquire(const Context& context, const AcquireRequest& request);
absl::StatusOr<HeartbeatReply> Heartbeat(const Context& context, const WorkerBeat& beat);
absl::Status CommitCheckpoint(const Context& context, const CheckpointRequest& request);
// Where the job is afterwards; CANCELLED = the commit came too late.
absl::StatusOr<JobState> Complete(const Context& context, const CompleteRequest& request);
absl::StatusOr<JobState> Fail(const Context& context, const FailRequest& request);
absl::Status Release(const Context& context, const LeaseToken& lease, const std::string& reason);

std::vector<Worker> ListWorkers(const Context& context, const std::string& after, int limit);
absl::StatusOr<Worker> DrainWorker(const Context& context, const std::string& worker_id,
                                   bool terminate);
absl::StatusOr<SweepReport> Sweep(const Context& context);
StoreStats Stats(Database& db, const JobPolicy& policy, Time now);

// Tells queued jobs why nobody takes them (waiting.cc).
void SweepWaiting(const Context& context, SweepReport& report);

std::vector<Job> ListAcross(Database& db, JobsAcross which, int limit);
std::vector<JobReferences> ListReferences(Database& db, const std::string& after, int limit);

// Shared ---------------------------------------------------------------------

// The leased row of the attempt. Errors: UNKNOWN_WORKER, LEASE_LOST.
absl::StatusOr<QueueRow> CheckLease(const Context& context, const LeaseToken& lease);

// Stores the events it does not have yet; returns the number expected next.
int64_t StoreEvents(const Context& context, QueueRow& row, const AttemptEvents& events);

// How an attempt ends without a result ------------------------------------------
// CANCELLING always becomes CANCELLED.

// Counted against max_attempts: QUEUED again or FAILED.
absl::StatusOr<JobState> EndFailed(const Context& context, const QueueRow& row,
                                   const absl::Status& error, bool final);
// FAILED whatever the counts say.
absl::StatusOr<JobState> EndForGood(const Context& context, const QueueRow& row,
                                    const absl::Status& error);
// The worker vanished: QUEUED again or FAILED POISON_JOB.
absl::StatusOr<JobState> EndLost(const Context& context, const QueueRow& row,
                                 const std::string& why);

}  // namespace quantry::server::sqlite
