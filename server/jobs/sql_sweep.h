#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/jobs/job_store.h"
#include "server/jobs/records.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_rows.h"
#include "server/jobs/waiting.h"

// A sweep of either SQL store, inside the caller's transaction. `Context` is the
// store's; EndLost, EndForGood, EndFailed, LockQueueRow, ReadKey and RemoveJob
// are those beside it. Rows that another transaction has locked are left for
// the next sweep: Database::kSkipLocked is how its SQL says so.
namespace quantry::server::sql {

// How long nobody swept; 0 the first time and when the clock stepped back.
template <class Context>
Duration SinceLastSweep(const Context& context) {
  constexpr const char* kLastSweep = "last_sweep";
  Duration since{};
  {
    auto rows = context.db.Query("SELECT value FROM meta WHERE key = $1", kLastSweep);
    if (rows.Next()) since = std::max(Duration(0), context.now - rows.At(0));
  }
  context.db.Execute(
      "INSERT INTO meta (key, value) VALUES ($1, $2)"
      " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
      kLastSweep, context.now);
  return since;
}

// What is wrong with a leased row, dealt with and counted; nullopt = nothing.
template <class Context>
std::optional<absl::StatusOr<JobState>> Judge(const Context& context, const QueueRow& row,
                                              SweepReport& report) {
  switch (JudgeLease(row, context.policy, context.now)) {
    case Verdict::kFine:
      break;
    case Verdict::kLapsed:
      ++report.lost;
      return EndLost(context, row, "did not report within its lease");
    case Verdict::kCancelIgnored:
      ++report.lost;
      return EndLost(context, row, "did not confirm the cancel");
    case Verdict::kMaxRun:
      ++report.over_limit;
      return EndForGood(context, row, MaxRunExceeded(row));
    case Verdict::kNoProgress:
      ++report.no_progress;
      return EndFailed(context, row, NoProgress(row), false);
  }
  return std::nullopt;
}

// Ends jobs that waited longer than they may.
template <class Context>
absl::Status SweepPending(const Context& context, SweepReport& report) {
  const auto overdue = Keys(context.db.Query(
      absl::StrCat("SELECT pk FROM queue WHERE state = 1 AND pending_deadline IS NOT NULL"
                   " AND pending_deadline <= $1 ORDER BY pending_deadline LIMIT $2",
                   context.db.kSkipLocked),
      context.now, context.policy.max_removed_per_sweep));
  for (int64_t pk : overdue) {
    const std::optional<QueueRow> row = LockQueueRow(context.db, pk);
    if (!row) continue;
    auto ended = EndForGood(context, *row, MaxPendingExceeded(*row));
    if (!ended.ok()) return ended.status();
    ++report.over_limit;
    report.changed.push_back(ReadKey(context.db, pk));
  }
  return absl::OkStatus();
}

template <class Context>
void SweepExpired(const Context& context, SweepReport& report) {
  const auto expired = Keys(context.db.Query(
      absl::StrCat(
          "SELECT pk FROM jobs WHERE expire_time IS NOT NULL AND state >= 4 AND expire_time <= $1"
          " ORDER BY expire_time LIMIT $2",
          context.db.kSkipLocked),
      context.now, context.policy.max_removed_per_sweep));
  for (int64_t pk : expired) {
    report.changed.push_back(ReadKey(context.db, pk));
    RemoveJob(context.db, pk, context.now);
    ++report.expired;
  }
}

// One that reports right now has its row locked.
template <class Context>
void ForgetWorkers(const Context& context) {
  context.db.Execute(
      absl::StrCat("DELETE FROM workers WHERE worker_id IN (SELECT worker_id FROM workers w"
                   " WHERE last_seen < $1 AND NOT EXISTS"
                   " (SELECT 1 FROM queue q WHERE q.worker_id = w.worker_id) LIMIT $2",
                   context.db.kSkipLocked, ")"),
      context.now - context.policy.forget_worker_after, context.policy.max_removed_per_sweep);
}

template <class Context>
std::vector<Worker> LiveWorkers(const Context& context) {
  std::vector<Worker> live;
  auto rows = context.db.Query("SELECT " QUANTRY_WORKER_COLUMNS
                               " FROM workers WHERE last_seen > $1 ORDER BY worker_id",
                               context.now - context.policy.lease_ttl);
  while (rows.Next()) live.push_back(WorkerOf(WorkerRowOf(rows), context.policy, context.now));
  return live;
}

template <class Context>
bool WasToldLately(const Context& context, int64_t pk) {
  auto rows =
      context.db.Query("SELECT event FROM job_events WHERE pk = $1 ORDER BY seq DESC LIMIT 1", pk);
  v1::JobEvent last;
  if (rows.Next()) rows.Parse(0, &last);
  return ToldLately(last, context.policy, context.now);
}

}  // namespace quantry::server::sql
