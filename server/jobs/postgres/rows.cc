#include "server/jobs/postgres/rows.h"

#include <utility>

#include "google/protobuf/util/time_util.h"
#include "server/jobs/postgres/twins.h"
#include "server/jobs/rules.h"

namespace quantry::server::postgres {
namespace {

constexpr const char* kJobColumns =
    "SELECT j.tenant, j.id, j.uid, j.display_name, p.spec, j.spec_digest, j.priority, j.state,"
    " j.state_reason, g.progress, j.epoch, j.worker, p.error, a.uid, p.result, j.version,"
    " (SELECT max(seq) FROM job_events e WHERE e.pk = j.pk), j.user_failures, j.worker_losses,"
    " j.create_time, j.update_time, j.start_time, j.end_time, j.expire_time,"
    " ARRAY(SELECT key FROM job_labels l WHERE l.pk = j.pk ORDER BY key),"
    " ARRAY(SELECT value FROM job_labels l WHERE l.pk = j.pk ORDER BY key), p.traceparent,"
    " j.result_of"
    " FROM jobs j JOIN job_payloads p ON p.pk = j.pk LEFT JOIN job_progress g ON g.pk = j.pk"
    " LEFT JOIN artifacts a ON a.uid = coalesce(j.shared_artifact, j.uid) ";

void ReadPayloads(Rows& rows, Job& job) {
  rows.Parse(4, &job.spec);
  rows.Parse(9, &job.progress);
  rows.Parse(12, &job.error);
  if (!rows.IsNull(14)) rows.Parse(14, &job.result.emplace());
}

#define QUANTRY_QUEUE_COLUMNS                                                               \
  "q.pk, q.state, q.epoch, q.worker_id, q.max_attempts, q.max_pending, q.max_run,"          \
  " q.max_no_progress, q.run_used, q.losses_since_checkpoint, q.claim_time, q.cancel_time," \
  " q.lease_until, q.steps_done, q.progress_time, q.next_event_offset"

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

std::optional<QueueRow> QueueRowIn(Rows rows) {
  if (!rows.Next()) return std::nullopt;
  return QueueRowOf(rows);
}

std::vector<QueueRow> QueueRowsIn(Rows rows) {
  std::vector<QueueRow> all;
  while (rows.Next()) all.push_back(QueueRowOf(rows));
  return all;
}

#define QUANTRY_SELECT_WORKER                                                             \
  "SELECT worker_id, incarnation, session, info, last_seen, draining, terminate, refusal" \
  " FROM workers "

std::vector<WorkerRow> WorkersIn(Rows rows) {
  std::vector<WorkerRow> all;
  while (rows.Next()) {
    WorkerRow& row = all.emplace_back();
    row.worker_id = rows.Text(0);
    row.incarnation = rows.Text(1);
    row.session = rows.Text(2);
    rows.Parse(3, &row.info);
    row.last_seen = rows.At(4);
    row.draining = rows.Int(5) != 0;
    row.terminate = rows.Int(6) != 0;
    row.refusal = rows.Text(7);
  }
  return all;
}

std::optional<WorkerRow> WorkerIn(Rows rows) {
  std::vector<WorkerRow> all = WorkersIn(std::move(rows));
  if (all.empty()) return std::nullopt;
  return std::move(all.front());
}

void Requeue(Database& db, const StateChange& change, Time now) {
  Time not_before = now + change.delay;
  db.Execute(
      "UPDATE queue SET state = 1, run_used = run_used + ($1::bigint - claim_time),"
      " enqueue_time = $1, not_before = CASE WHEN $2::bigint > $1 THEN $2 ELSE 0 END,"
      " pending_deadline = $2 + max_pending, worker_id = NULL, acquire_id = NULL,"
      " lease_until = NULL, cancel_time = NULL WHERE pk = $3",
      now, not_before, change.pk);
}

void MoveQueueRow(Database& db, const StateChange& change, Time now) {
  if (IsEnded(change.to)) {
    db.Execute("DELETE FROM queue WHERE pk = $1", change.pk);
  } else if (change.to == JobState::kQueued) {
    Requeue(db, change, now);
  } else if (change.to == JobState::kCancelling) {
    db.Execute("UPDATE queue SET state = 3, cancel_time = $1 WHERE pk = $2", now, change.pk);
  }  // RUNNING: the claim fills the row in
}

}  // namespace

std::optional<int64_t> FindJob(Database& db, const JobKey& key) {
  Rows rows = db.Query("SELECT pk FROM jobs WHERE tenant = $1 AND id = $2", key.tenant, key.id);
  if (!rows.Next()) return std::nullopt;
  return rows.Int(0);
}

bool LockJob(Database& db, int64_t pk) {
  db.Execute("SELECT 1 FROM queue WHERE pk = $1 FOR UPDATE", pk);
  return db.Query("SELECT 1 FROM jobs WHERE pk = $1 FOR NO KEY UPDATE", pk).Next();
}

std::optional<int64_t> LockJob(Database& db, const JobKey& key) {
  std::optional<int64_t> pk = FindJob(db, key);
  if (!pk || !LockJob(db, *pk)) return std::nullopt;
  return pk;
}

std::string SelectJobs(const std::string& where_and_order) { return kJobColumns + where_and_order; }

Job JobOf(Rows& rows) {
  Job job;
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
  ReadPayloads(rows, job);
  const std::vector<std::string> keys = rows.Texts(24);
  const std::vector<std::string> values = rows.Texts(25);
  for (size_t i = 0; i < keys.size() && i < values.size(); ++i) job.labels[keys[i]] = values[i];
  job.traceparent = rows.Text(26);
  job.result_of = rows.Text(27);
  return job;
}

Job ReadJob(Database& db, int64_t pk) {
  static const std::string sql = SelectJobs("WHERE j.pk = $1");
  Rows rows = db.Query(sql, pk);
  return rows.Next() ? JobOf(rows) : Job{};
}

JobKey ReadKey(Database& db, int64_t pk) {
  Rows rows = db.Query("SELECT tenant, id FROM jobs WHERE pk = $1", pk);
  if (!rows.Next()) return {};
  return {rows.Text(0), rows.Text(1)};
}

std::optional<QueueRow> LockQueueRow(Database& db, int64_t pk) {
  return QueueRowIn(
      db.Query("SELECT " QUANTRY_QUEUE_COLUMNS " FROM queue q WHERE q.pk = $1 FOR UPDATE", pk));
}

std::optional<QueueRow> LockQueueRow(Database& db, const JobKey& key) {
  return QueueRowIn(db.Query("SELECT " QUANTRY_QUEUE_COLUMNS
                             " FROM queue q JOIN jobs j ON j.pk = q.pk"
                             " WHERE j.tenant = $1 AND j.id = $2 FOR UPDATE OF q",
                             key.tenant, key.id));
}

std::vector<QueueRow> ReadLeased(Database& db) {
  return QueueRowsIn(db.Query("SELECT " QUANTRY_QUEUE_COLUMNS
                              " FROM queue q WHERE q.worker_id IS NOT NULL ORDER BY q.pk"));
}

std::vector<QueueRow> LockLeasedBy(Database& db, const std::string& worker_id) {
  return QueueRowsIn(db.Query("SELECT " QUANTRY_QUEUE_COLUMNS
                              " FROM queue q WHERE q.worker_id = $1 ORDER BY q.pk FOR UPDATE",
                              worker_id));
}

std::optional<WorkerRow> FindWorkerBySession(Database& db, const std::string& session) {
  return WorkerIn(db.Query(QUANTRY_SELECT_WORKER "WHERE session = $1", session));
}

std::optional<WorkerRow> LockWorker(Database& db, const std::string& worker_id) {
  return WorkerIn(db.Query(QUANTRY_SELECT_WORKER "WHERE worker_id = $1 FOR UPDATE", worker_id));
}

std::vector<WorkerRow> ReadWorkers(Database& db) {
  return WorkersIn(db.Query(QUANTRY_SELECT_WORKER "ORDER BY worker_id"));
}

std::optional<QueuePause> ReadPause(Database& db) {
  Rows rows = db.Query("SELECT reason, create_time FROM queue_pause");
  if (!rows.Next()) return std::nullopt;
  return QueuePause{rows.Text(0), rows.At(1)};
}

int64_t One(Rows rows) { return rows.Next() ? rows.Int(0) : 0; }

std::string TextArray(const std::vector<std::string>& texts) {
  std::string literal = "{";
  for (const std::string& text : texts) {
    literal += literal.size() > 1 ? ",\"" : "\"";
    for (char c : text) {
      if (c == '"' || c == '\\') literal += '\\';
      literal += c;
    }
    literal += '"';
  }
  return literal + "}";
}

void AppendEvent(Database& db, int64_t pk, int64_t epoch, Time now, v1::JobEvent event) {
  event.clear_sequence();
  event.set_epoch(epoch);
  *event.mutable_time() =
      google::protobuf::util::TimeUtil::MicrosecondsToTimestamp(ToUnixMicros(now));
  db.Execute(
      "INSERT INTO job_events (pk, seq, event)"
      " SELECT $1::bigint, coalesce(max(seq), 0) + 1, $2::bytea FROM job_events WHERE pk = $1",
      pk, event);
}

absl::Status ChangeState(Database& db, const StateChange& change, Time now) {
  if (absl::Status allowed = CheckTransition(change); !allowed.ok()) return allowed;
  std::optional<Time> end_time;
  if (IsEnded(change.to)) end_time = now;
  db.Execute(
      "UPDATE jobs SET state = $1, state_reason = $2, version = version + 1, update_time = $3,"
      " end_time = $4::bigint,"
      " waits_for = CASE WHEN $4::bigint IS NULL THEN waits_for END WHERE pk = $5",
      static_cast<int>(change.to), change.reason, now, end_time, change.pk);
  if (change.to == JobState::kFailed && change.error) {
    db.Execute("UPDATE job_payloads SET error = $1 WHERE pk = $2", *change.error, change.pk);
  }
  MoveQueueRow(db, change, now);
  AppendEvent(db, change.pk, change.epoch, now, EventOf(change));
  return IsEnded(change.to) ? EndWaiting(db, change, now) : absl::OkStatus();
}

}  // namespace quantry::server::postgres
