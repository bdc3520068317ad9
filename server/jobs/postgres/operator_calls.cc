#include <map>

#include "server/jobs/postgres/schema.h"
#include "server/jobs/postgres/tenant_calls.h"
#include "server/jobs/postgres/worker_calls.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_quotas.h"
#include "server/jobs/sql_rows.h"
#include "server/jobs/sql_sweep.h"

// ListWorkers, DrainWorker, Sweep, Stats, ListReferences.
namespace quantry::server::postgres {
namespace {

// Until the end of the transaction. False: another server has it.
bool TakeSweepLock(Database& db) {
  static const std::string sql =
      std::string("SELECT pg_try_advisory_xact_lock(") + kSweepLock + ")::int";
  return sql::One(db.Query(sql)) != 0;
}

// After an outage nobody could beat: everyone gets a whole new ttl, and the
// outage does not count as standing still or running. What was claimed or
// cancelled when it was over began after it: no time moves past now.
void PushLeases(const Context& context, Duration outage) {
  context.db.Execute(
      "WITH leased AS (SELECT pk FROM queue WHERE worker_id IS NOT NULL ORDER BY pk FOR UPDATE)"
      " UPDATE queue q SET lease_until = greatest(lease_until, $1),"
      " progress_time = least(progress_time + $2, $3), claim_time = least(claim_time + $2, $3),"
      " cancel_time = CASE WHEN cancel_time IS NOT NULL THEN least(cancel_time + $2, $3) END"
      " FROM leased WHERE q.pk = leased.pk",
      context.now + context.policy.lease_ttl, outage, context.now);
}

// Locks the row and judges it as it is then. nullopt = nothing is wrong.
std::optional<absl::StatusOr<JobState>> Judge(const Context& context, int64_t pk, Time judged,
                                              SweepReport& report) {
  const std::optional<QueueRow> row = LockQueueRow(context.db, pk);
  if (!row || !IsLeased(row->state)) return std::nullopt;
  return sql::Judge(context, *row, judged, report);
}

// Snapshots of other roles are seen by members of pg_read_all_stats alone.
void ReadVacuum(Database& db, StoreStats& stats) {
  stats.dead_rows =
      sql::One(db.Query("SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables"
                        " WHERE relid = 'queue'::regclass"));
  stats.oldest_snapshot_age = sql::One(db.Query(
      "SELECT coalesce(max(age(xmin)), 0)::bigint FROM ("
      "SELECT backend_xmin AS xmin FROM pg_stat_activity WHERE datname = current_database()"
      " UNION ALL SELECT transaction FROM pg_prepared_xacts"
      " WHERE database = current_database()"
      " UNION ALL SELECT xmin FROM pg_replication_slots) held"));
}

absl::Status SweepLeases(const Context& context, Time judged, SweepReport& report) {
  for (const QueueRow& row : ReadLeased(context.db)) {
    if (JudgeLease(row, context.policy, context.now) == Verdict::kFine) continue;
    auto ended = Judge(context, row.pk, judged, report);
    if (!ended) continue;
    if (!ended->ok()) return ended->status();
    report.changed.push_back(ReadKey(context.db, row.pk));
  }
  return absl::OkStatus();
}

// Counter changes that are committed by now become part of the counters.
void FoldCounts(Database& db) {
  db.Execute(
      "WITH gone AS (DELETE FROM job_count_changes RETURNING state, n),"
      " sums AS (SELECT state, sum(n) AS n FROM gone GROUP BY state)"
      " UPDATE job_counts c SET n = c.n + sums.n FROM sums WHERE sums.state = c.state");
}

// The jobs each of these workers runs.
std::multimap<std::string, JobKey> LeasedJobs(Database& db, const std::vector<std::string>& ids) {
  std::multimap<std::string, JobKey> jobs;
  Rows rows = db.Query(
      "SELECT q.worker_id, j.tenant, j.id FROM queue q JOIN jobs j ON j.pk = q.pk"
      " WHERE q.worker_id = ANY ($1::text[]) ORDER BY q.pk",
      TextArray(ids));
  while (rows.Next()) jobs.emplace(rows.Text(0), JobKey{rows.Text(1), rows.Text(2)});
  return jobs;
}

}  // namespace

std::vector<Worker> WithJobs(Database& db, const std::vector<WorkerRow>& rows,
                             const JobPolicy& policy, Time now) {
  std::vector<std::string> ids;
  for (const WorkerRow& row : rows) ids.push_back(row.worker_id);
  const auto jobs = LeasedJobs(db, ids);
  std::vector<Worker> workers;
  for (const WorkerRow& row : rows) {
    Worker& worker = workers.emplace_back(WorkerOf(row, policy, now));
    const auto [begin, end] = jobs.equal_range(row.worker_id);
    for (auto job = begin; job != end; ++job) worker.jobs.push_back(job->second);
  }
  return workers;
}

absl::StatusOr<Worker> DrainWorker(const Context& context, const std::string& worker_id,
                                   bool terminate) {
  context.db.Execute(
      "UPDATE workers SET draining = 1, terminate = greatest(terminate, $1) WHERE worker_id = $2",
      terminate, worker_id);
  std::optional<WorkerRow> row = LockWorker(context.db, worker_id);
  if (!row) return WorkerNotFound(worker_id);
  return WithJobs(context.db, {*std::move(row)}, context.policy, context.now).at(0);
}

absl::StatusOr<SweepReport> Sweep(const Context& context) {
  SweepReport report;
  if (!TakeSweepLock(context.db)) {
    report.left_to_another = true;
    return report;
  }
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
  FoldCounts(context.db);
  return report;
}

std::vector<Job> ListAcross(Database& db, JobsAcross which, int limit) {
  // The keys first, by their index, then the rest of these few jobs.
  static const std::string waiting = SelectJobs(
      "JOIN queue q ON q.pk = j.pk WHERE j.pk = ANY (ARRAY(SELECT pk FROM queue WHERE state = 1"
      " ORDER BY enqueue_time LIMIT $1)) ORDER BY q.enqueue_time");
  static const std::string leased = SelectJobs(
      "JOIN queue q ON q.pk = j.pk WHERE j.pk = ANY (ARRAY(SELECT pk FROM queue WHERE worker_id"
      " IS NOT NULL ORDER BY worker_id, acquire_id LIMIT $1)) ORDER BY q.worker_id");
  static const std::string ended = SelectJobs(
      "WHERE j.pk = ANY (ARRAY(SELECT pk FROM jobs WHERE state >= 4 ORDER BY end_time DESC"
      " LIMIT $1)) ORDER BY j.end_time DESC");
  const std::string& sql = which == JobsAcross::kWaiting  ? waiting
                           : which == JobsAcross::kLeased ? leased
                                                          : ended;
  Rows rows = db.Query(sql, limit);
  std::vector<Job> jobs;
  while (rows.Next()) jobs.push_back(JobOf(rows));
  return jobs;
}

std::vector<JobReferences> ListReferences(Database& db, const std::string& after, int limit) {
  const std::vector<Value> values = {Arg(after), Arg(limit)};
  return sql::ReferencesIn(db.QueryOnce(
      "SELECT j.tenant, j.uid, j.state, j.epoch, p.spec, a.epoch, c.epoch FROM jobs j"
      " JOIN job_payloads p ON p.pk = j.pk LEFT JOIN artifacts a ON a.uid = j.uid"
      " LEFT JOIN job_checkpoints c ON c.pk = j.pk WHERE j.uid > $1 ORDER BY j.uid LIMIT $2",
      values));
}

StoreStats Stats(Database& db, const JobPolicy& policy, Time now) {
  StoreStats stats;
  Rows counts = db.Query(
      "SELECT state, sum(n)::bigint FROM (SELECT state, n FROM job_counts"
      " UNION ALL SELECT state, n FROM job_count_changes) counted GROUP BY state");
  while (counts.Next()) stats.jobs[static_cast<JobState>(counts.Int(0))] = counts.Int(1);
  stats.delayed = sql::One(db.Query(
      "SELECT count(*) FROM queue WHERE state = 1 AND not_before > 0 AND not_before > $1", now));
  stats.held = sql::HeldJobs(db, now);
  stats.depth = stats.jobs[JobState::kQueued] - stats.delayed - stats.held;
  Rows oldest =
      db.Query("SELECT min(enqueue_time) FROM queue WHERE state = 1 AND not_before < $1", kParked);
  if (oldest.Next()) stats.oldest_queued = oldest.MaybeAt(0);
  stats.pause = ReadPause(db);
  stats.busy_slots = static_cast<int>(
      sql::One(db.Query("SELECT count(*) FROM queue WHERE worker_id IS NOT NULL")));
  stats.known_workers = static_cast<int>(sql::One(db.Query("SELECT count(*) FROM workers")));
  sql::CountWorkers(
      db.Query("SELECT info FROM workers WHERE last_seen > $1", now - policy.lease_ttl), stats);
  ReadVacuum(db, stats);
  return stats;
}

}  // namespace quantry::server::postgres
