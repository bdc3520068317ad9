#include "common/errors.h"
#include "server/jobs/postgres/worker_calls.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_checkpoints.h"
#include "server/jobs/sql_rows.h"

// What a worker says while it holds a lease.
namespace quantry::server::postgres {
namespace {

// Never sooner than it was: this server's reading of the clock may be the one
// before a step that another server has noticed. The same with progress.
void Renew(const Context& context, const QueueRow& row) {
  context.db.Execute("UPDATE queue SET lease_until = greatest(lease_until, $1) WHERE pk = $2",
                     context.now + context.policy.lease_ttl, row.pk);
}

// The lease, the step counter and the progress; one row each, both HOT.
void RenewWithProgress(const Context& context, const QueueRow& row,
                       const v1::JobProgress& progress) {
  const bool bytes_moved =
      MovesFiles(progress) && BytesMoved(sql::StoredProgress(context.db, row.pk), progress);
  context.db.Execute(
      "INSERT INTO job_progress (pk, progress) VALUES ($1, $2)"
      " ON CONFLICT (pk) DO UPDATE SET progress = excluded.progress",
      row.pk, progress);
  context.db.Execute(
      "UPDATE queue SET lease_until = greatest(lease_until, $1),"
      " steps_done = greatest(steps_done, $2::bigint),"
      " progress_time = CASE WHEN $2 > steps_done OR $5::int > 0"
      " THEN greatest(progress_time, $3::bigint) ELSE progress_time END WHERE pk = $4",
      context.now + context.policy.lease_ttl, progress.steps_done(), context.now, row.pk,
      bytes_moved);
}

// `durable` is set when the beat brought events: those must not be taken back.
absl::StatusOr<BeatReply> BeatOne(const Context& context, const WorkerRow& worker, const Beat& beat,
                                  bool* durable) {
  BeatReply reply{.job = beat.job, .epoch = beat.epoch, .uid = beat.uid};
  auto row = CheckLease(context, worker, {worker.session, beat.job, beat.epoch, beat.uid});
  if (HasReason(row.status(), Reason::kLeaseLost)) {
    reply.directive = v1::DIRECTIVE_LOST;
    return reply;
  }
  if (!row.ok()) return row.status();
  const int64_t known = row->next_event_offset;
  reply.ttl = context.policy.lease_ttl;
  reply.next_event_offset = StoreEvents(context, *row, beat.events);
  *durable |= reply.next_event_offset != known;
  RenewWithProgress(context, *row, beat.progress);
  reply.directive = DirectiveFor(*row, worker);
  return reply;
}

// The job ended with exactly this commit: its reply was lost.
bool IsRepeat(const Context& context, const CompleteRequest& request) {
  Rows rows = context.db.Query(
      "SELECT 1 FROM artifacts a JOIN jobs j ON j.pk = a.pk WHERE j.tenant = $1 AND j.id = $2"
      " AND a.epoch = $3 AND a.manifest_sha256 = $4 AND $5::text IN ('', j.uid)",
      request.lease.job.tenant, request.lease.job.id, request.lease.epoch, request.manifest_sha256,
      request.lease.uid);
  return rows.Next();
}

void InsertArtifact(const Context& context, const QueueRow& row, const CompleteRequest& request) {
  context.db.Execute(
      "INSERT INTO artifacts (uid, pk, tenant, uri, manifest_sha256, total_bytes, file_count,"
      " epoch, create_time) SELECT uid, pk, tenant, $1::text, $2::text, $3::bigint, $4::int,"
      " $5::bigint, $6::bigint FROM jobs WHERE pk = $7",
      request.artifact_uri, request.manifest_sha256, request.total_bytes, request.file_count,
      row.epoch, context.now, row.pk);
}

void StoreResult(const Context& context, const QueueRow& row, const CompleteRequest& request) {
  v1::JobResult result = request.result;
  result.set_artifact_uri(request.artifact_uri);
  const int64_t queued =
      sql::One(context.db.Query("SELECT start_time - create_time FROM jobs WHERE pk = $1", row.pk));
  result.mutable_timing()->set_queue_s(static_cast<double>(queued) / 1e6);
  context.db.Execute("UPDATE job_payloads SET result = $1 WHERE pk = $2", result, row.pk);
}

}  // namespace

absl::StatusOr<HeartbeatReply> Heartbeat(const Context& context, const WorkerBeat& worker_beat) {
  std::optional<WorkerRow> worker = FindWorkerBySession(context.db, worker_beat.session);
  if (!worker) return UnknownWorker();
  context.db.Execute("UPDATE workers SET last_seen = $1, refusal = $2 WHERE worker_id = $3",
                     context.now, worker_beat.refusal, worker->worker_id);
  HeartbeatReply reply;
  reply.worker = DirectiveFor(*worker);
  reply.worker_id = worker->worker_id;
  bool durable = false;
  // All rows first, in the order a sweep takes them: beats come in any order,
  // and the two would wait for each other.
  LockLeasedBy(context.db, worker->worker_id);
  for (const Beat& beat : worker_beat.jobs) {
    auto one = BeatOne(context, *worker, beat, &durable);
    if (!one.ok()) return one.status();
    reply.jobs.push_back(*std::move(one));
  }
  if (!durable) context.db.CommitMayBeLate();
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
      "INSERT INTO job_checkpoints (pk, epoch, checkpoint) VALUES ($1, $2, $3)"
      " ON CONFLICT (pk) DO UPDATE SET epoch = excluded.epoch, checkpoint = excluded.checkpoint",
      row->pk, row->epoch, checkpoint);
  // The job gets on: machines that go now and then are not its doing.
  context.db.Execute("UPDATE queue SET losses_since_checkpoint = 0 WHERE pk = $1", row->pk);
  context.db.Execute("DELETE FROM job_losses WHERE pk = $1", row->pk);
  AppendEvent(context.db, row->pk, row->epoch, context.now, EventOf(checkpoint));
  return absl::OkStatus();
}

absl::StatusOr<JobState> Complete(const Context& context, const CompleteRequest& request) {
  if (IsRepeat(context, request)) return JobState::kSucceeded;
  auto row = CheckLease(context, request.lease);
  if (!row.ok()) {
    // The first call may have committed while this one waited for its lock.
    if (IsRepeat(context, request)) return JobState::kSucceeded;
    return row.status();
  }
  StoreEvents(context, *row, request.events);
  // The cancel was acknowledged before this commit, so the cancel wins.
  if (row->state == JobState::kCancelling) return EndForGood(context, *row, absl::OkStatus());
  InsertArtifact(context, *row, request);
  StoreResult(context, *row, request);
  context.db.Execute("DELETE FROM job_checkpoints WHERE pk = $1", row->pk);
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
  if (!request.log_tail.empty()) {
    AppendEvent(context.db, row->pk, row->epoch, context.now, LogTailEvent(request.log_tail));
  }
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

}  // namespace quantry::server::postgres
