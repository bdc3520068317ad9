#include "server/jobs/sqlite/rows.h"

#include <utility>

#include "google/protobuf/util/time_util.h"
#include "server/jobs/rules.h"
#include "server/jobs/sqlite/twins.h"

namespace quantry::server::sqlite {
namespace {

constexpr std::string_view kSelectJob =
    "SELECT j.tenant, j.id, j.uid, j.display_name, p.spec, j.spec_digest, j.priority, j.state,"
    " j.state_reason, g.progress, j.epoch, j.worker, p.error, a.uid, p.result,"
    " j.version, (SELECT max(seq) FROM job_events e WHERE e.pk = j.pk), j.user_failures,"
    " j.worker_losses, j.create_time, j.update_time, j.start_time, j.end_time, j.expire_time,"
    " p.traceparent, j.result_of FROM jobs j JOIN job_payloads p USING (pk) LEFT JOIN job_progress "
    "g USING (pk)"
    " LEFT JOIN artifacts a ON a.uid = coalesce(j.shared_artifact, j.uid) WHERE j.pk = ?";

void ReadPayloads(Rows& rows, Job& job) {
  rows.Parse(4, &job.spec);
  rows.Parse(9, &job.progress);
  rows.Parse(12, &job.error);
  if (!rows.IsNull(14)) rows.Parse(14, &job.result.emplace());
}

#define QUANTRY_QUEUE_COLUMNS                                                             \
  "pk, state, epoch, worker_id, max_attempts, max_pending, max_run, max_no_progress,"     \
  " run_used, losses_since_checkpoint, claim_time, cancel_time, lease_until, steps_done," \
  " progress_time, next_event_offset"

QueueRow QueueRowOf(const Rows& rows) {
  QueueRow row;
  row.pk = rows.Int(0);
  row.state = static_cast<JobState>(rows.Int(1));
  row.epoch = rows.Int(2);
  row.worker_id = rows.Text(3);
  row.max_attempts = static_cast<int>(rows.Int(4));
  row.max_pending = Duration(rows.Int(5));
  row.max_run = Duration(rows.Int(6));
  row.max_no_progress = Duration(rows.Int(7));
  row.run_used = Duration(rows.Int(8));
  row.losses_since_checkpoint = static_cast<int>(rows.Int(9));
  row.claim_time = rows.At(10);
  row.cancel_time = rows.At(11);
  row.lease_until = rows.At(12);
  row.steps_done = rows.Int(13);
  row.progress_time = rows.At(14);
  row.next_event_offset = rows.Int(15);
  return row;
}

std::vector<QueueRow> QueueRowsOf(Rows rows) {
  std::vector<QueueRow> all;
  while (rows.Next()) all.push_back(QueueRowOf(rows));
  return all;
}

#define QUANTRY_WORKER_COLUMNS \
  "worker_id, incarnation, session, info, last_seen, draining, terminate, refusal"

std::optional<WorkerRow> WorkerRowOf(Rows rows) {
  if (!rows.Next()) return std::nullopt;
  WorkerRow row;
  row.worker_id = rows.Text(0);
  row.incarnation = rows.Text(1);
  row.session = rows.Text(2);
  rows.Parse(3, &row.info);
  row.last_seen = rows.At(4);
  row.draining = rows.Int(5) != 0;
  row.terminate = rows.Int(6) != 0;
  row.refusal = rows.Text(7);
  return row;
}

void Requeue(Database& db, const StateChange& change, Time now) {
  Time not_before = now + change.delay;
  db.Execute(
      "UPDATE queue SET state = 1, run_used = run_used + (?1 - claim_time), enqueue_time = ?1,"
      " not_before = CASE WHEN ?2 > ?1 THEN ?2 ELSE 0 END, pending_deadline = ?2 + max_pending,"
      " worker_id = NULL, acquire_id = NULL, lease_until = NULL, cancel_time = NULL"
      " WHERE pk = ?3",
      now, not_before, change.pk);
}

void MoveQueueRow(Database& db, const StateChange& change, Time now) {
  if (IsEnded(change.to)) {
    db.Execute("DELETE FROM queue WHERE pk = ?", change.pk);
  } else if (change.to == JobState::kQueued) {
    Requeue(db, change, now);
  } else if (change.to == JobState::kCancelling) {
    db.Execute("UPDATE queue SET state = 3, cancel_time = ? WHERE pk = ?", now, change.pk);
  }  // RUNNING: the claim fills the row in
}

}  // namespace

std::optional<int64_t> FindJob(Database& db, const JobKey& key) {
  Rows rows = db.Query("SELECT pk FROM jobs WHERE tenant = ? AND id = ?", key.tenant, key.id);
  if (!rows.Next()) return std::nullopt;
  return rows.Int(0);
}

Job ReadJob(Database& db, int64_t pk) {
  Job job;
  Rows rows = db.Query(kSelectJob, pk);
  if (!rows.Next()) return job;
  job.key = {rows.Text(0), rows.Text(1)};
  job.uid = rows.Text(2);
  job.display_name = rows.Text(3);
  job.spec_digest = rows.Text(5);
  job.priority = static_cast<int>(rows.Int(6));
  job.state = static_cast<JobState>(rows.Int(7));
  job.state_reason = rows.Text(8);
  job.epoch = rows.Int(10);
  job.worker = rows.Text(11);
  job.has_artifact = !rows.IsNull(13);
  job.artifact_uid = rows.Text(13);
  job.version = rows.Int(15);
  job.last_sequence = rows.Int(16);
  job.user_failures = static_cast<int>(rows.Int(17));
  job.worker_losses = static_cast<int>(rows.Int(18));
  job.create_time = rows.At(19);
  job.update_time = rows.At(20);
  job.start_time = rows.MaybeAt(21);
  job.end_time = rows.MaybeAt(22);
  job.expire_time = rows.MaybeAt(23);
  job.traceparent = rows.Text(24);
  job.result_of = rows.Text(25);
  ReadPayloads(rows, job);
  Rows labels = db.Query("SELECT key, value FROM job_labels WHERE pk = ?", pk);
  while (labels.Next()) job.labels.emplace(labels.Text(0), labels.Text(1));
  return job;
}

JobKey ReadKey(Database& db, int64_t pk) {
  Rows rows = db.Query("SELECT tenant, id FROM jobs WHERE pk = ?", pk);
  if (!rows.Next()) return {};
  return {rows.Text(0), rows.Text(1)};
}

std::optional<QueueRow> ReadQueueRow(Database& db, int64_t pk) {
  Rows rows = db.Query("SELECT " QUANTRY_QUEUE_COLUMNS " FROM queue WHERE pk = ?", pk);
  if (!rows.Next()) return std::nullopt;
  return QueueRowOf(rows);
}

std::vector<QueueRow> ReadLeased(Database& db) {
  return QueueRowsOf(db.Query("SELECT " QUANTRY_QUEUE_COLUMNS
                              " FROM queue WHERE worker_id IS NOT NULL ORDER BY pk"));
}

std::vector<QueueRow> ReadLeasedBy(Database& db, const std::string& worker_id) {
  return QueueRowsOf(db.Query(
      "SELECT " QUANTRY_QUEUE_COLUMNS " FROM queue WHERE worker_id = ? ORDER BY pk", worker_id));
}

std::optional<WorkerRow> FindWorkerBySession(Database& db, const std::string& session) {
  return WorkerRowOf(
      db.Query("SELECT " QUANTRY_WORKER_COLUMNS " FROM workers WHERE session = ?", session));
}

std::optional<WorkerRow> FindWorkerById(Database& db, const std::string& worker_id) {
  return WorkerRowOf(
      db.Query("SELECT " QUANTRY_WORKER_COLUMNS " FROM workers WHERE worker_id = ?", worker_id));
}

std::optional<QueuePause> ReadPause(Database& db) {
  Rows rows = db.Query("SELECT reason, create_time FROM queue_pause");
  if (!rows.Next()) return std::nullopt;
  return QueuePause{rows.Text(0), rows.At(1)};
}

void AppendEvent(Database& db, int64_t pk, int64_t epoch, Time now, v1::JobEvent event) {
  int64_t last = 0;
  {
    Rows rows = db.Query("SELECT max(seq) FROM job_events WHERE pk = ?", pk);
    if (rows.Next()) last = rows.Int(0);
  }
  event.set_sequence(last + 1);
  event.set_epoch(epoch);
  *event.mutable_time() =
      google::protobuf::util::TimeUtil::MicrosecondsToTimestamp(ToUnixMicros(now));
  db.Execute("INSERT INTO job_events (pk, seq, event) VALUES (?, ?, ?)", pk, last + 1, event);
}

absl::Status ChangeState(Database& db, const StateChange& change, Time now) {
  if (absl::Status allowed = CheckTransition(change); !allowed.ok()) return allowed;
  std::optional<Time> end_time;
  if (IsEnded(change.to)) end_time = now;
  db.Execute(
      "UPDATE jobs SET state = ?, state_reason = ?, version = version + 1, update_time = ?,"
      " end_time = ?4, waits_for = iif(?4 IS NULL, waits_for, NULL) WHERE pk = ?5",
      static_cast<int>(change.to), change.reason, now, end_time, change.pk);
  if (change.to == JobState::kFailed && change.error) {
    db.Execute("UPDATE job_payloads SET error = ? WHERE pk = ?", *change.error, change.pk);
  }
  MoveQueueRow(db, change, now);
  AppendEvent(db, change.pk, change.epoch, now, EventOf(change));
  return IsEnded(change.to) ? EndWaiting(db, change, now) : absl::OkStatus();
}

}  // namespace quantry::server::sqlite
