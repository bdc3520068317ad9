#include "server/jobs/postgres/rows.h"

#include <utility>

#include "google/protobuf/util/time_util.h"
#include "server/jobs/postgres/twins.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_rows.h"

namespace quantry::server::postgres {
namespace {

constexpr const char* kSelectJobs =
    "SELECT " QUANTRY_JOB_COLUMNS
    ", ARRAY(SELECT key FROM job_labels l WHERE l.pk = j.pk ORDER BY key),"
    " ARRAY(SELECT value FROM job_labels l WHERE l.pk = j.pk ORDER BY key)" QUANTRY_JOB_TABLES;
constexpr int kLabelKeys = 26;
constexpr int kLabelValues = 27;

#define QUANTRY_SELECT_WORKER "SELECT " QUANTRY_WORKER_COLUMNS " FROM workers "

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

bool LockEndedJob(Database& db, int64_t pk) {
  return db.Query("SELECT 1 FROM jobs WHERE pk = $1 FOR NO KEY UPDATE", pk).Next();
}

bool LockJob(Database& db, int64_t pk) {
  db.Execute("SELECT 1 FROM queue WHERE pk = $1 FOR UPDATE", pk);
  return LockEndedJob(db, pk);
}

std::optional<int64_t> LockJob(Database& db, const JobKey& key) {
  std::optional<int64_t> pk = FindJob(db, key);
  if (!pk || !LockJob(db, *pk)) return std::nullopt;
  return pk;
}

std::string SelectJobs(const std::string& where_and_order) { return kSelectJobs + where_and_order; }

Job JobOf(Rows& rows) {
  Job job = sql::JobOf(rows);
  const std::vector<std::string> keys = rows.Texts(kLabelKeys);
  const std::vector<std::string> values = rows.Texts(kLabelValues);
  for (size_t i = 0; i < keys.size() && i < values.size(); ++i) job.labels[keys[i]] = values[i];
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
  return sql::QueueRowIn(
      db.Query("SELECT " QUANTRY_QUEUE_COLUMNS " FROM queue q WHERE q.pk = $1 FOR UPDATE", pk));
}

std::vector<QueueRow> ReadLeased(Database& db) {
  return sql::QueueRowsIn(db.Query("SELECT " QUANTRY_QUEUE_COLUMNS
                                   " FROM queue q WHERE q.worker_id IS NOT NULL ORDER BY q.pk"));
}

std::vector<QueueRow> LockLeasedBy(Database& db, const std::string& worker_id) {
  return sql::QueueRowsIn(db.Query("SELECT " QUANTRY_QUEUE_COLUMNS
                                   " FROM queue q WHERE q.worker_id = $1 ORDER BY q.pk FOR UPDATE",
                                   worker_id));
}

std::optional<WorkerRow> FindWorkerBySession(Database& db, const std::string& session) {
  return sql::WorkerRowIn(db.Query(QUANTRY_SELECT_WORKER "WHERE session = $1", session));
}

std::optional<WorkerRow> LockWorker(Database& db, const std::string& worker_id) {
  return sql::WorkerRowIn(
      db.Query(QUANTRY_SELECT_WORKER "WHERE worker_id = $1 FOR UPDATE", worker_id));
}

std::vector<WorkerRow> ReadWorkers(Database& db, const std::string& after, int limit) {
  Rows rows = db.Query(QUANTRY_SELECT_WORKER "WHERE worker_id > $1 ORDER BY worker_id LIMIT $2",
                       after, limit);
  std::vector<WorkerRow> all;
  while (rows.Next()) all.push_back(sql::WorkerRowOf(rows));
  return all;
}

std::optional<QueuePause> ReadPause(Database& db) {
  Rows rows = db.Query("SELECT reason, create_time FROM queue_pause");
  if (!rows.Next()) return std::nullopt;
  return QueuePause{rows.Text(0), rows.At(1)};
}

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
