#include "common/errors.h"
#include "server/jobs/rules.h"
#include "server/jobs/sqlite/worker_calls.h"

namespace quantry::server::sqlite {
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

// The job a lease names, while it is that job: another may have its name by now.
std::optional<int64_t> FindLeased(Database& db, const LeaseToken& lease) {
  Rows rows = db.Query("SELECT pk FROM jobs WHERE tenant = ? AND id = ? AND ? IN ('', uid)",
                       lease.job.tenant, lease.job.id, lease.uid);
  if (!rows.Next()) return std::nullopt;
  return rows.Int(0);
}

int64_t Count(Database& db, std::string_view sql, int64_t pk) {
  Rows rows = db.Query(sql, pk);
  return rows.Next() ? rows.Int(0) : 0;
}

}  // namespace

absl::StatusOr<QueueRow> CheckLease(const Context& context, const LeaseToken& lease) {
  std::optional<WorkerRow> worker = FindWorkerBySession(context.db, lease.session);
  if (!worker) return UnknownWorker();
  std::optional<int64_t> pk = FindLeased(context.db, lease);
  if (!pk) return LeaseLost(lease.job, lease.epoch, "the job is gone");
  std::optional<QueueRow> row = LockQueueRow(context.db, *pk);
  if (!row) return LeaseLost(lease.job, lease.epoch, "the job has ended");
  absl::Status held = CheckLeaseRow(lease, *row, worker->worker_id);
  if (!held.ok()) return held;
  return *row;
}

int64_t StoreEvents(const Context& context, QueueRow& row, const AttemptEvents& events) {
  const std::vector<v1::JobEvent> added = NewEvents(row.next_event_offset, events);
  for (const v1::JobEvent& event : added) {
    if (IsWorkersOwn(event)) AppendEvent(context.db, row.pk, row.epoch, context.now, event);
  }
  row.next_event_offset += static_cast<int64_t>(added.size());
  if (!added.empty()) {
    context.db.Execute("UPDATE queue SET next_event_offset = ? WHERE pk = ?", row.next_event_offset,
                       row.pk);
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
  context.db.Execute("UPDATE jobs SET user_failures = user_failures + 1 WHERE pk = ?", row.pk);
  auto failures =
      static_cast<int>(Count(context.db, "SELECT user_failures FROM jobs WHERE pk = ?", row.pk));
  if (final || failures >= row.max_attempts) return EndForGood(context, row, error);
  return End(context, row, JobState::kQueued, error,
             Backoff(context.policy, failures, context.random()));
}

absl::StatusOr<JobState> EndLost(const Context& context, const QueueRow& row,
                                 const std::string& why) {
  if (row.state == JobState::kCancelling) return EndCancelled(context, row);
  int losses = row.losses_since_checkpoint + 1;
  Database& db = context.db;
  db.Execute("UPDATE jobs SET worker_losses = worker_losses + 1 WHERE pk = ?", row.pk);
  db.Execute("UPDATE queue SET losses_since_checkpoint = ? WHERE pk = ?", losses, row.pk);
  db.Execute("INSERT OR IGNORE INTO job_losses (pk, worker_id) VALUES (?, ?)", row.pk,
             row.worker_id);
  int64_t distinct = Count(db, "SELECT count(*) FROM job_losses WHERE pk = ?", row.pk);
  if (IsPoison(context.policy, distinct, losses)) {
    return EndForGood(context, row, Poisoned(row, distinct, losses));
  }
  return End(context, row, JobState::kQueued, WorkerLost(row, why),
             Backoff(context.policy, losses, context.random()));
}

}  // namespace quantry::server::sqlite
