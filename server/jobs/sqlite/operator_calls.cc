#include "server/jobs/rules.h"
#include "server/jobs/sql_quotas.h"
#include "server/jobs/sql_rows.h"
#include "server/jobs/sql_sweep.h"
#include "server/jobs/sqlite/tenant_calls.h"
#include "server/jobs/sqlite/worker_calls.h"

// ListWorkers, DrainWorker, Sweep, Stats, ListReferences.
namespace quantry::server::sqlite {
namespace {

Worker WithJobs(const Context& context, const WorkerRow& row) {
  Worker worker = WorkerOf(row, context.policy, context.now);
  for (const QueueRow& leased : ReadLeasedBy(context.db, row.worker_id)) {
    worker.jobs.push_back(ReadKey(context.db, leased.pk));
  }
  return worker;
}

std::vector<std::string> Column(Rows rows) {
  std::vector<std::string> texts;
  while (rows.Next()) texts.push_back(rows.Text(0));
  return texts;
}

// After an outage nobody could beat: everyone gets a whole new ttl, and the
// outage does not count as standing still or running. What was claimed or
// cancelled when it was over began after it: no time moves past now.
void PushLeases(const Context& context, Duration outage) {
  context.db.Execute(
      "UPDATE queue SET lease_until = max(lease_until, ?1),"
      " progress_time = min(progress_time + ?2, ?3), claim_time = min(claim_time + ?2, ?3),"
      " cancel_time = min(cancel_time + ?2, ?3) WHERE worker_id IS NOT NULL",
      context.now + context.policy.lease_ttl, outage, context.now);
}

absl::Status SweepLeases(const Context& context, Time judged, SweepReport& report) {
  for (const QueueRow& row : ReadLeased(context.db)) {
    auto ended = sql::Judge(context, row, judged, report);
    if (!ended) continue;
    if (!ended->ok()) return ended->status();
    report.changed.push_back(ReadKey(context.db, row.pk));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Worker> ListWorkers(const Context& context, const std::string& after, int limit) {
  std::vector<Worker> workers;
  for (const std::string& id : Column(context.db.Query(
           "SELECT worker_id FROM workers WHERE worker_id > ? ORDER BY worker_id LIMIT ?", after,
           limit))) {
    std::optional<WorkerRow> row = FindWorkerById(context.db, id);
    if (row) workers.push_back(WithJobs(context, *row));
  }
  return workers;
}

absl::StatusOr<Worker> DrainWorker(const Context& context, const std::string& worker_id,
                                   bool terminate) {
  context.db.Execute(
      "UPDATE workers SET draining = 1, terminate = max(terminate, ?) WHERE worker_id = ?",
      terminate, worker_id);
  std::optional<WorkerRow> row = FindWorkerById(context.db, worker_id);
  if (row) return WithJobs(context, *row);
  return WorkerNotFound(worker_id);
}

absl::StatusOr<SweepReport> Sweep(const Context& context) {
  SweepReport report;
  const sql::LastSweep last = sql::TakeLastSweep(context);
  if (last.outage > context.policy.lease_ttl / 2) {
    PushLeases(context, last.outage);
    report.pushed_leases = true;
    return report;
  }
  sql::PullTimes(context, last.back);
  absl::Status swept = SweepLeases(context, last.judged, report);
  const auto enough = sql::EnoughForNow(context.policy);
  if (swept.ok()) swept = sql::SweepPending(context, enough, report);
  if (!swept.ok()) return swept;
  sql::SweepExpired(context, enough, report);
  SweepWaiting(context, report);
  sql::ForgetWorkers(context);
  return report;
}

std::vector<Job> ListAcross(Database& db, JobsAcross which, int limit) {
  const auto keys = [&] {
    switch (which) {
      case JobsAcross::kWaiting:
        return sql::Keys(
            db.Query("SELECT pk FROM queue WHERE state = 1 ORDER BY enqueue_time LIMIT ?", limit));
      case JobsAcross::kLeased:
        return sql::Keys(db.Query(
            "SELECT pk FROM queue WHERE worker_id IS NOT NULL ORDER BY worker_id LIMIT ?", limit));
      case JobsAcross::kEnded:
        break;
    }
    return sql::Keys(
        db.Query("SELECT pk FROM jobs WHERE state >= 4 ORDER BY end_time DESC LIMIT ?", limit));
  };
  std::vector<Job> jobs;
  for (const int64_t pk : keys()) jobs.push_back(ReadJob(db, pk));
  return jobs;
}

std::vector<JobReferences> ListReferences(Database& db, const std::string& after, int limit) {
  return sql::ReferencesIn(
      db.Query("SELECT j.tenant, j.uid, j.state, j.epoch, p.spec, a.epoch, c.epoch FROM jobs j"
               " JOIN job_payloads p USING (pk) LEFT JOIN artifacts a ON a.uid = j.uid"
               " LEFT JOIN job_checkpoints c USING (pk) WHERE j.uid > ? ORDER BY j.uid LIMIT ?",
               after, limit));
}

StoreStats Stats(Database& db, const JobPolicy& policy, Time now) {
  StoreStats stats;
  {
    Rows rows = db.Query("SELECT state, n FROM job_counts");
    while (rows.Next()) stats.jobs[static_cast<JobState>(rows.Int(0))] = rows.Int(1);
  }
  stats.delayed = sql::One(db.Query(
      "SELECT count(*) FROM queue WHERE state = 1 AND not_before > 0 AND not_before > ?", now));
  stats.held = sql::HeldJobs(db, now);
  stats.depth = stats.jobs[JobState::kQueued] - stats.delayed - stats.held;
  {
    Rows rows =
        db.Query("SELECT min(enqueue_time) FROM queue WHERE state = 1 AND not_before < ?", kParked);
    if (rows.Next()) stats.oldest_queued = rows.MaybeAt(0);
  }
  stats.pause = ReadPause(db);
  stats.busy_slots = static_cast<int>(
      sql::One(db.Query("SELECT count(*) FROM queue WHERE worker_id IS NOT NULL")));
  stats.known_workers = static_cast<int>(sql::One(db.Query("SELECT count(*) FROM workers")));
  sql::CountWorkers(
      db.Query("SELECT info FROM workers WHERE last_seen > ?", now - policy.lease_ttl), stats);
  return stats;
}

}  // namespace quantry::server::sqlite
