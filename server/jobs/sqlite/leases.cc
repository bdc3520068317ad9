#include "common/errors.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_checkpoints.h"
#include "server/jobs/sql_rows.h"
#include "server/jobs/sqlite/worker_calls.h"

// What a worker says while it holds a lease.
namespace quantry::server::sqlite {
namespace {

// Never sooner than it was, as in PostgreSQL.
void Renew(const Context& context, const QueueRow& row) {
  context.db.Execute("UPDATE queue SET lease_until = max(lease_until, ?) WHERE pk = ?",
                     context.now + context.policy.lease_ttl, row.pk);
}

void StoreProgress(const Context& context, const QueueRow& row, const v1::JobProgress& progress) {
  const bool moved =
      progress.steps_done() > row.steps_done ||
      (MovesFiles(progress) && BytesMoved(sql::StoredProgress(context.db, row.pk), progress));
  // Upsert: an UPDATE where the row exists, as after the first beat.
  context.db.Execute(
      "INSERT INTO job_progress (pk, progress) VALUES (?, ?)"
      " ON CONFLICT (pk) DO UPDATE SET progress = excluded.progress",
      row.pk, progress);
  if (!moved) return;
  context.db.Execute(
      "UPDATE queue SET steps_done = max(steps_done, ?), progress_time = max(progress_time, ?)"
      " WHERE pk = ?",
      progress.steps_done(), context.now, row.pk);
}

absl::StatusOr<BeatReply> BeatOne(const Context& context, const WorkerRow& worker,
                                  const Beat& beat) {
  BeatReply reply{.job = beat.job, .epoch = beat.epoch, .uid = beat.uid};
  auto row = CheckLease(context, {worker.session, beat.job, beat.epoch, beat.uid});
  if (HasReason(row.status(), Reason::kLeaseLost)) {
    reply.directive = v1::DIRECTIVE_LOST;
    return reply;
  }
  if (!row.ok()) return row.status();
  Renew(context, *row);
  reply.ttl = context.policy.lease_ttl;
  reply.next_event_offset = StoreEvents(context, *row, beat.events);
  StoreProgress(context, *row, beat.progress);
  reply.directive = DirectiveFor(*row, worker);
  return reply;
}

// The job ended with exactly this commit: its reply was lost.
bool IsRepeat(const Context& context, const CompleteRequest& request) {
  Rows rows = context.db.Query(
      "SELECT 1 FROM artifacts a JOIN jobs j USING (pk) WHERE j.tenant = ? AND j.id = ?"
      " AND a.epoch = ? AND a.manifest_sha256 = ? AND ? IN ('', j.uid)",
      request.lease.job.tenant, request.lease.job.id, request.lease.epoch, request.manifest_sha256,
      request.lease.uid);
  return rows.Next();
}

void InsertArtifact(const Context& context, const QueueRow& row, const CompleteRequest& request) {
  context.db.Execute(
      "INSERT INTO artifacts (uid, pk, tenant, uri, manifest_sha256, total_bytes, file_count,"
      " epoch, create_time) SELECT uid, pk, tenant, ?, ?, ?, ?, ?, ? FROM jobs WHERE pk = ?",
      request.artifact_uri, request.manifest_sha256, request.total_bytes, request.file_count,
      row.epoch, context.now, row.pk);
}

void StoreResult(const Context& context, const QueueRow& row, const CompleteRequest& request) {
  v1::JobResult result = request.result;
  result.set_artifact_uri(request.artifact_uri);
  {
    Rows rows = context.db.Query("SELECT start_time - create_time FROM jobs WHERE pk = ?", row.pk);
    if (rows.Next()) result.mutable_timing()->set_queue_s(static_cast<double>(rows.Int(0)) / 1e6);
  }
  context.db.Execute("UPDATE job_payloads SET result = ? WHERE pk = ?", result, row.pk);
}

void StoreLogTail(const Context& context, const QueueRow& row, const std::string& log) {
  if (log.empty()) return;
  AppendEvent(context.db, row.pk, row.epoch, context.now, LogTailEvent(log));
}

}  // namespace

absl::StatusOr<HeartbeatReply> Heartbeat(const Context& context, const WorkerBeat& worker_beat) {
  std::optional<WorkerRow> worker = FindWorkerBySession(context.db, worker_beat.session);
  if (!worker) return UnknownWorker();
  context.db.Execute("UPDATE workers SET last_seen = ?, refusal = ? WHERE worker_id = ?",
                     context.now, worker_beat.refusal, worker->worker_id);
  HeartbeatReply reply;
  reply.worker = DirectiveFor(*worker);
  reply.worker_id = worker->worker_id;
  for (const Beat& beat : worker_beat.jobs) {
    auto one = BeatOne(context, *worker, beat);
    if (!one.ok()) return one.status();
    reply.jobs.push_back(*std::move(one));
  }
  return reply;
}

absl::Status CommitCheckpoint(const Context& context, const CheckpointRequest& request) {
  auto row = CheckLease(context, request.lease);
  if (!row.ok()) return row.status();
  const v1::CheckpointRef& checkpoint = request.checkpoint;
  Renew(context, *row);
  StoreEvents(context, *row, request.events);
  if (sql::IsSuperseded(context, *row, checkpoint)) return absl::OkStatus();
  context.db.Execute(
      "INSERT OR REPLACE INTO job_checkpoints (pk, epoch, checkpoint) VALUES (?, ?, ?)", row->pk,
      row->epoch, checkpoint);
  // The job gets on: machines that go now and then are not its doing.
  context.db.Execute("UPDATE queue SET losses_since_checkpoint = 0 WHERE pk = ?", row->pk);
  context.db.Execute("DELETE FROM job_losses WHERE pk = ?", row->pk);
  AppendEvent(context.db, row->pk, row->epoch, context.now, EventOf(checkpoint));
  return absl::OkStatus();
}

absl::StatusOr<JobState> Complete(const Context& context, const CompleteRequest& request) {
  if (IsRepeat(context, request)) return JobState::kSucceeded;
  auto row = CheckLease(context, request.lease);
  if (!row.ok()) return row.status();
  StoreEvents(context, *row, request.events);
  // The cancel was acknowledged before this commit, so the cancel wins.
  if (row->state == JobState::kCancelling) return EndForGood(context, *row, absl::OkStatus());
  InsertArtifact(context, *row, request);
  StoreResult(context, *row, request);
  context.db.Execute("DELETE FROM job_checkpoints WHERE pk = ?", row->pk);
  if (request.result.quality_gate_failed()) {
    return EndForGood(context, *row,
                      GateFailed(ReadJob(context.db, row->pk).spec.quality_gate(),
                                 request.result.quality().perplexity()));
  }
  StateChange change{.pk = row->pk,
                     .from = row->state,
                     .to = JobState::kSucceeded,
                     .epoch = row->epoch,
                     .reason = "artifact committed"};
  absl::Status changed = ChangeState(context.db, change, context.now);
  if (!changed.ok()) return changed;
  return JobState::kSucceeded;
}

absl::StatusOr<JobState> Fail(const Context& context, const FailRequest& request) {
  auto row = CheckLease(context, request.lease);
  if (!row.ok()) return row.status();
  StoreEvents(context, *row, request.events);
  StoreLogTail(context, *row, request.log_tail);
  return EndFailed(context, *row, ErrorOf(request), /*final=*/!request.retryable);
}

absl::Status Release(const Context& context, const LeaseToken& lease, const std::string& reason) {
  auto row = CheckLease(context, lease);
  if (!row.ok()) return row.status();
  if (row->state == JobState::kCancelling) {
    return EndForGood(context, *row, absl::OkStatus()).status();
  }
  StateChange change{.pk = row->pk,
                     .from = row->state,
                     .to = JobState::kQueued,
                     .epoch = row->epoch,
                     .reason = reason.empty() ? "released by the worker" : reason};
  return ChangeState(context.db, change, context.now);
}

}  // namespace quantry::server::sqlite
