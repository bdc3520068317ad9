#include "server/jobs/sqlite/rows.h"

#include <utility>

#include "google/protobuf/util/time_util.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_rows.h"
#include "server/jobs/sqlite/twins.h"

namespace quantry::server::sqlite {
namespace {

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
  Rows rows = db.Query("SELECT " QUANTRY_JOB_COLUMNS QUANTRY_JOB_TABLES "WHERE j.pk = ?", pk);
  if (!rows.Next()) return {};
  Job job = sql::JobOf(rows);
  Rows labels = db.Query("SELECT key, value FROM job_labels WHERE pk = ?", pk);
  while (labels.Next()) job.labels.emplace(labels.Text(0), labels.Text(1));
  return job;
}

JobKey ReadKey(Database& db, int64_t pk) {
  Rows rows = db.Query("SELECT tenant, id FROM jobs WHERE pk = ?", pk);
  if (!rows.Next()) return {};
  return {rows.Text(0), rows.Text(1)};
}

std::optional<QueueRow> LockQueueRow(Database& db, int64_t pk) {
  return sql::QueueRowIn(
      db.Query("SELECT " QUANTRY_QUEUE_COLUMNS " FROM queue q WHERE q.pk = ?", pk));
}

std::vector<QueueRow> ReadLeased(Database& db) {
  return sql::QueueRowsIn(db.Query("SELECT " QUANTRY_QUEUE_COLUMNS
                                   " FROM queue q WHERE q.worker_id IS NOT NULL ORDER BY q.pk"));
}

std::vector<QueueRow> ReadLeasedBy(Database& db, const std::string& worker_id) {
  return sql::QueueRowsIn(db.Query("SELECT " QUANTRY_QUEUE_COLUMNS
                                   " FROM queue q WHERE q.worker_id = ? ORDER BY q.pk",
                                   worker_id));
}

std::optional<WorkerRow> FindWorkerBySession(Database& db, const std::string& session) {
  return sql::WorkerRowIn(
      db.Query("SELECT " QUANTRY_WORKER_COLUMNS " FROM workers WHERE session = ?", session));
}

std::optional<WorkerRow> FindWorkerById(Database& db, const std::string& worker_id) {
  return sql::WorkerRowIn(
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
