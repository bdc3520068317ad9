#include "server/jobs/waiting.h"

#include "server/jobs/postgres/quotas.h"
#include "server/jobs/postgres/worker_calls.h"
#include "server/jobs/sql_sweep.h"

// Tells queued jobs why no worker takes them.
namespace quantry::server::postgres {
namespace {

// The oldest ones are told; a sweep must stay short whatever the queue holds.
constexpr int kMaxTold = 200;

struct Queued {
  int64_t pk = 0;
  JobNeeds needs;
  std::string state_reason;
  std::string tenant;
};

std::vector<Queued> ReadOldest(const Context& context) {
  static const std::string sql =
      "SELECT q.pk, q.method, q.gpu_count, q.min_gpu_memory, q.host_memory, j.state_reason,"
      " q.tenant FROM queue q JOIN jobs j ON j.pk = q.pk"
      " WHERE q.state = 1 AND q.enqueue_time <= $1 AND q.not_before <= $2"
      " ORDER BY q.enqueue_time LIMIT " +
      std::to_string(kMaxTold);
  Rows rows = context.db.Query(sql, context.now - context.policy.tell_waiting_after, context.now);
  std::vector<Queued> oldest;
  while (rows.Next()) {
    oldest.push_back({.pk = rows.Int(0),
                      .needs = {.method = rows.Text(1),
                                .gpu_count = static_cast<int>(rows.Int(2)),
                                .min_gpu_memory_bytes = rows.Int(3),
                                .host_memory_bytes = rows.Int(4)},
                      .state_reason = rows.Text(5),
                      .tenant = rows.Text(6)});
  }
  return oldest;
}

// No new version: the etag is about what a client may change. False = somebody
// is claiming or changing it right now.
bool Tell(const Context& context, const Queued& job, const std::string& reason) {
  Rows locked = context.db.Query(
      "SELECT 1 FROM queue WHERE pk = $1 AND state = 1 FOR UPDATE SKIP LOCKED", job.pk);
  if (!locked.Next()) return false;
  context.db.Execute("UPDATE jobs SET state_reason = $1 WHERE pk = $2", reason, job.pk);
  AppendEvent(context.db, job.pk, 0, context.now, WaitingEvent(reason));
  return true;
}

}  // namespace

void SweepWaiting(const Context& context, SweepReport& report) {
  const std::vector<Queued> oldest = ReadOldest(context);
  if (oldest.empty()) return;
  const std::vector<Worker> live = sql::LiveWorkers(context);
  const std::optional<QueuePause> pause = ReadPause(context.db);
  const std::set<std::string> at_quota = TenantsAtRunningQuota(context.db);
  for (const Queued& job : oldest) {
    std::string reason = pause ? WaitsForResume(*pause) : WhyWaiting(job.needs, live);
    if (reason.empty() && at_quota.contains(job.tenant)) reason = WaitsForQuota();
    if (reason == job.state_reason) continue;
    // Other reasons say how the job came to be queued and stay.
    if (reason.empty() && !IsWaitingReason(job.state_reason)) continue;
    if (sql::WasToldLately(context, job.pk)) continue;
    if (!Tell(context, job, reason)) continue;
    ++report.waiting;
    report.changed.push_back(ReadKey(context.db, job.pk));
  }
}

}  // namespace quantry::server::postgres
