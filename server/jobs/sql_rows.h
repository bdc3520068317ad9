#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "server/jobs/job.h"
#include "server/jobs/job_store.h"
#include "server/jobs/records.h"
#include "server/jobs/rules.h"

// What the SQL stores read alike: lists of columns, and the records made of
// rows that have them. `Rows` is sqlite::Rows or postgres::Rows.
namespace quantry::server::sql {

// Without labels, which each store reads its own way; JobOf reads them.
#define QUANTRY_JOB_COLUMNS                                                                   \
  "j.tenant, j.id, j.uid, j.display_name, p.spec, j.spec_digest, j.priority, j.state,"        \
  " j.state_reason, g.progress, j.epoch, j.worker, p.error, a.uid, p.result, j.version,"      \
  " (SELECT max(seq) FROM job_events e WHERE e.pk = j.pk), j.user_failures, j.worker_losses," \
  " j.create_time, j.update_time, j.start_time, j.end_time, j.expire_time, p.traceparent,"    \
  " j.result_of"
#define QUANTRY_JOB_TABLES                                                                  \
  " FROM jobs j JOIN job_payloads p ON p.pk = j.pk LEFT JOIN job_progress g ON g.pk = j.pk" \
  " LEFT JOIN artifacts a ON a.uid = coalesce(j.shared_artifact, j.uid) "
#define QUANTRY_QUEUE_COLUMNS                                                               \
  "q.pk, q.state, q.epoch, q.worker_id, q.max_attempts, q.max_pending, q.max_run,"          \
  " q.max_no_progress, q.run_used, q.losses_since_checkpoint, q.claim_time, q.cancel_time," \
  " q.lease_until, q.steps_done, q.progress_time, q.next_event_offset"
#define QUANTRY_WORKER_COLUMNS \
  "worker_id, incarnation, session, info, last_seen, draining, terminate, refusal"

template <class Rows>
Job JobOf(Rows& rows) {
  Job job;
  job.key = {rows.Text(0), rows.Text(1)};
  job.uid = rows.Text(2);
  job.display_name = rows.Text(3);
  rows.Parse(4, &job.spec);
  job.spec_digest = rows.Text(5);
  job.priority = static_cast<int>(rows.Int(6));
  job.state = static_cast<JobState>(rows.Int(7));
  job.state_reason = rows.Text(8);
  rows.Parse(9, &job.progress);
  job.epoch = rows.Int(10);
  job.worker = rows.Text(11);
  rows.Parse(12, &job.error);
  job.has_artifact = !rows.IsNull(13);
  job.artifact_uid = rows.Text(13);
  if (!rows.IsNull(14)) rows.Parse(14, &job.result.emplace());
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
  return job;
}

template <class Rows>
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

template <class Rows>
WorkerRow WorkerRowOf(Rows& rows) {
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

// The row of a query that has one, or none.
template <class Rows>
std::optional<QueueRow> QueueRowIn(Rows rows) {
  if (!rows.Next()) return std::nullopt;
  return QueueRowOf(rows);
}

template <class Rows>
std::optional<WorkerRow> WorkerRowIn(Rows rows) {
  if (!rows.Next()) return std::nullopt;
  return WorkerRowOf(rows);
}

template <class Rows>
std::vector<QueueRow> QueueRowsIn(Rows rows) {
  std::vector<QueueRow> all;
  while (rows.Next()) all.push_back(QueueRowOf(rows));
  return all;
}

// The one number of a query; 0 without a row.
template <class Rows>
int64_t One(Rows rows) {
  return rows.Next() ? rows.Int(0) : 0;
}

// Rows of one number each.
template <class Rows>
std::vector<int64_t> Keys(Rows rows) {
  std::vector<int64_t> keys;
  while (rows.Next()) keys.push_back(rows.Int(0));
  return keys;
}

// Rows of: tenant, uid, state, epoch of jobs j, spec, epoch of the artifact and
// of the checkpoint.
template <class Rows>
std::vector<JobReferences> ReferencesIn(Rows rows) {
  std::vector<JobReferences> all;
  while (rows.Next()) {
    JobReferences& job = all.emplace_back();
    job.tenant = rows.Text(0);
    job.uid = rows.Text(1);
    if (IsLeased(static_cast<JobState>(rows.Int(2)))) {
      job.outputs.insert(rows.Int(3));
      job.checkpoints.insert(rows.Int(3));
    }
    if (!rows.IsNull(5)) job.outputs.insert(rows.Int(5));
    if (!rows.IsNull(6)) job.checkpoints.insert(rows.Int(6));
    v1::JobSpec spec;
    rows.Parse(4, &spec);
    job.blobs = BlobsOf(spec);
  }
  return all;
}

// Rows of: info of workers that live.
template <class Rows>
void CountWorkers(Rows rows, StoreStats& stats) {
  while (rows.Next()) {
    v1::WorkerInfo info;
    rows.Parse(0, &info);
    ++stats.live_workers;
    stats.total_slots += info.slots();
  }
}

// The last progress a job's worker told; empty before the first beat.
template <class Database>
v1::JobProgress StoredProgress(Database& db, int64_t pk) {
  v1::JobProgress progress;
  auto rows = db.Query("SELECT progress FROM job_progress WHERE pk = $1", pk);
  if (rows.Next()) rows.Parse(0, &progress);
  return progress;
}

}  // namespace quantry::server::sql
