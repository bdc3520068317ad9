#include "common/errors.h"
#include "server/jobs/postgres/worker_calls.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_rows.h"

namespace quantry::server::postgres {
namespace {

// Keeps the reason of the cancel: why it ended is what people ask of the job.
absl::StatusOr<JobState> EndCancelled(const Context& context, const QueueRow& row) {
  StateChange change{.pk = row.pk,
                     .from = JobState::kCancelling,
                     .to = JobState::kCancelled,
                     .epoch = row.epoch,
                     .reason = ReadJob(context.db, row.pk).state_reason};
  absl::Status changed = ChangeState(context.db, change, context.now);
  if (!changed.ok()) return changed;
  return JobState::kCancelled;
}

// The job a lease names, while it is that job: another may have its name by now.
std::optional<QueueRow> LockLeased(Database& db, const LeaseToken& lease) {
  return sql::QueueRowIn(db.Query("SELECT " QUANTRY_QUEUE_COLUMNS
                                  " FROM queue q JOIN jobs j ON j.pk = q.pk"
                                  " WHERE j.tenant = $1 AND j.id = $2"
                                  " AND $3::text IN ('', j.uid) FOR UPDATE OF q",
                                  lease.job.tenant, lease.job.id, lease.uid));
}

bool IsThere(Database& db, const LeaseToken& lease) {
  return db
      .Query("SELECT 1 FROM jobs WHERE tenant = $1 AND id = $2 AND $3::text IN ('', uid)",
             lease.job.tenant, lease.job.id, lease.uid)
      .Next();
}

absl::StatusOr<JobState> End(const Context& context, const QueueRow& row, JobState to,
                             const absl::Status& error, Duration delay) {
  StateChange change{.pk = row.pk,
                     .from = row.state,
                     .to = to,
                     .epoch = row.epoch,
                     .reason = ReasonOf(error),
                     .error = ToRpcStatus(error),
                     .delay = delay};
  absl::Status changed = ChangeState(context.db, change, context.now);
  if (!changed.ok()) return changed;
  return to;
}

}  // namespace

absl::StatusOr<QueueRow> CheckLease(const Context& context, const WorkerRow& worker,
                                    const LeaseToken& lease) {
  std::optional<QueueRow> row = LockLeased(context.db, lease);
  if (!row) {
    const bool known = IsThere(context.db, lease);
    return LeaseLost(lease.job, lease.epoch, known ? "the job has ended" : "the job is gone");
  }
  absl::Status held = CheckLeaseRow(lease, *row, worker.worker_id);
  if (!held.ok()) return held;
  return *row;
}

absl::StatusOr<QueueRow> CheckLease(const Context& context, const LeaseToken& lease) {
  std::optional<WorkerRow> worker = FindWorkerBySession(context.db, lease.session);
  if (!worker) return UnknownWorker();
  return CheckLease(context, *worker, lease);
}

int64_t StoreEvents(const Context& context, QueueRow& row, const AttemptEvents& events) {
  const std::vector<v1::JobEvent> added = NewEvents(row.next_event_offset, events);
  for (const v1::JobEvent& event : added) {
    if (IsWorkersOwn(event)) AppendEvent(context.db, row.pk, row.epoch, context.now, event);
  }
  row.next_event_offset += static_cast<int64_t>(added.size());
  if (!added.empty()) {
    context.db.Execute("UPDATE queue SET next_event_offset = $1 WHERE pk = $2",
                       row.next_event_offset, row.pk);
  }
  return row.next_event_offset;
}

absl::StatusOr<JobState> EndForGood(const Context& context, const QueueRow& row,
                                    const absl::Status& error) {
  if (row.state == JobState::kCancelling) return EndCancelled(context, row);
  return End(context, row, JobState::kFailed, error, Duration(0));
}

absl::StatusOr<JobState> EndFailed(const Context& context, const QueueRow& row,
                                   const absl::Status& error, bool final) {
  if (row.state == JobState::kCancelling) return EndCancelled(context, row);
  const auto failures = static_cast<int>(sql::One(context.db.Query(
      "UPDATE jobs SET user_failures = user_failures + 1 WHERE pk = $1 RETURNING user_failures",
      row.pk)));
  if (final || failures >= row.max_attempts) return EndForGood(context, row, error);
  return End(context, row, JobState::kQueued, error,
             Backoff(context.policy, failures, context.random()));
}

absl::StatusOr<JobState> EndLost(const Context& context, const QueueRow& row,
                                 const std::string& why) {
  if (row.state == JobState::kCancelling) return EndCancelled(context, row);
  const int losses = row.losses_since_checkpoint + 1;
  Database& db = context.db;
  db.Execute("UPDATE jobs SET worker_losses = worker_losses + 1 WHERE pk = $1", row.pk);
  db.Execute("UPDATE queue SET losses_since_checkpoint = $1 WHERE pk = $2", losses, row.pk);
  db.Execute("INSERT INTO job_losses (pk, worker_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
             row.pk, row.worker_id);
  const int64_t distinct =
      sql::One(db.Query("SELECT count(*) FROM job_losses WHERE pk = $1", row.pk));
  if (IsPoison(context.policy, distinct, losses)) {
    return EndForGood(context, row, Poisoned(row, distinct, losses));
  }
  return End(context, row, JobState::kQueued, WorkerLost(row, why),
             Backoff(context.policy, losses, context.random()));
}

}  // namespace quantry::server::postgres
