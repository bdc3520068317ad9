#pragma once

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
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

// What the sweep before this one tells; all 0 when there was none.
struct LastSweep {
  Duration outage{};  // since then; nobody swept
  Duration back{};    // by so much the clock has stepped back since then
  Time judged;        // no lease that ended until then was left; 0 = unknown
};

template <class Context>
LastSweep TakeLastSweep(const Context& context) {
  constexpr const char* kLastSweep = "last_sweep";
  LastSweep last;
  {
    auto rows = context.db.Query("SELECT value FROM meta WHERE key = $1", kLastSweep);
    if (rows.Next()) {
      last.outage = std::max(Duration(0), context.now - rows.At(0));
      last.back = std::max(Duration(0), rows.At(0) - context.now);
      if (last.back == Duration(0)) last.judged = rows.At(0);
    }
  }
  context.db.Execute(
      "INSERT INTO meta (key, value) VALUES ($1, $2)"
      " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
      kLastSweep, context.now);
  return last;
}

// The mirror of PushLeases, on every sweep: servers notice a step of the clock
// seconds apart, and write times of the old one until then. What lies ahead of
// now goes back with the clock; what no rule would write at now is cut to the
// most it would. A row that is locked waits for the next sweep.
template <class Context>
void PullLeases(const Context& context, Duration back) {
  const std::string least = context.db.kLeast;
  const auto pulled = [&](const std::string& column) {
    return absl::StrCat(column, " = CASE WHEN ", column, " > $2 THEN ", least, "(", column,
                        " - $3, $2) ELSE ", column, " END");
  };
  context.db.Execute(
      absl::StrCat("UPDATE queue SET lease_until = ", least, "(lease_until, $1), ",
                   pulled("progress_time"), ", ", pulled("claim_time"), ", ", pulled("cancel_time"),
                   " WHERE worker_id IS NOT NULL AND pk IN (SELECT pk",
                   " FROM queue WHERE worker_id IS NOT NULL AND (lease_until > $1",
                   " OR progress_time > $2 OR claim_time > $2 OR cancel_time > $2) ORDER BY pk",
                   context.db.kSkipLocked, ")"),
      context.now + std::max(context.policy.lease_ttl, context.policy.first_lease_ttl), context.now,
      back);
  context.db.Execute(
      absl::StrCat("UPDATE workers SET last_seen = $1 WHERE worker_id IN (SELECT worker_id",
                   " FROM workers WHERE last_seen > $1 ORDER BY worker_id", context.db.kSkipLocked,
                   ")"),
      context.now);
}

// The same for backoffs; a job that waits for another one's result stays parked.
template <class Context>
void PullBackoffs(const Context& context, Duration back) {
  const Time most = context.now + context.policy.backoff_cap;
  context.db.Execute(
      absl::StrCat("UPDATE queue SET not_before = ", context.db.kLeast, "(not_before - $1, $2)",
                   " WHERE state = 1 AND pk IN (SELECT pk FROM queue WHERE state = 1",
                   " AND not_before > 0 AND not_before > $3 AND not_before < $4 ORDER BY pk",
                   context.db.kSkipLocked, ")"),
      back, most, back > Duration(0) ? context.now : most, kParked);
}

// Whose turn it is: who was served before the step would be served last until now is there again.
template <class Context>
void PullTurns(const Context& context, Duration back) {
  if (back == Duration(0)) return;
  const std::string pulled =
      absl::StrCat(" SET last_claim = ", context.db.kLeast, "(last_claim - $2, $1) WHERE ");
  context.db.Execute(
      absl::StrCat("UPDATE jobs", pulled, "pk IN (SELECT pk FROM jobs",
                   " WHERE last_claim > $1 ORDER BY pk", context.db.kSkipLocked, ")"),
      context.now, back);
  context.db.Execute(absl::StrCat("UPDATE turns", pulled, "last_claim > $1"), context.now, back);
}

template <class Context>
void PullTimes(const Context& context, Duration back) {
  PullLeases(context, back);
  PullBackoffs(context, back);
  PullTurns(context, back);
}

// A lease that had ended at the sweep before was written since, by a server that
// had not noticed a step of the clock: it begins again.
template <class Context>
void BeginLeaseAgain(const Context& context, const QueueRow& row) {
  context.db.Execute(
      "UPDATE queue SET lease_until = $1, claim_time = $2, progress_time = $2,"
      " cancel_time = CASE WHEN cancel_time IS NOT NULL THEN $2 ELSE cancel_time END"
      " WHERE pk = $3",
      context.now + context.policy.lease_ttl, context.now, row.pk);
}

// What is wrong with a leased row, dealt with and counted; nullopt = nothing.
template <class Context>
std::optional<absl::StatusOr<JobState>> Judge(const Context& context, const QueueRow& row,
                                              Time judged, SweepReport& report) {
  if (row.lease_until <= judged) {
    BeginLeaseAgain(context, row);
    return std::nullopt;
  }
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
      ++report.max_run;
      return EndForGood(context, row, MaxRunExceeded(row));
    case Verdict::kNoProgress:
      ++report.no_progress;
      return EndFailed(context, row, NoProgress(row), false);
  }
  return std::nullopt;
}

// When a sweep leaves the rest of a backlog to the next ones: one that took half a lease would read
// as an outage, and nobody would be judged while the backlog lasts.
inline std::chrono::steady_clock::time_point EnoughForNow(const JobPolicy& policy) {
  return std::chrono::steady_clock::now() + policy.lease_ttl / 10;
}

// Ends jobs that waited longer than they may.
template <class Context>
absl::Status SweepPending(const Context& context, std::chrono::steady_clock::time_point enough,
                          SweepReport& report) {
  const auto overdue = Keys(context.db.Query(
      absl::StrCat("SELECT pk FROM queue WHERE state = 1 AND pending_deadline IS NOT NULL"
                   " AND pending_deadline <= $1 ORDER BY pending_deadline LIMIT $2",
                   context.db.kSkipLocked),
      context.now, context.policy.max_removed_per_sweep));
  for (int64_t pk : overdue) {
    if (std::chrono::steady_clock::now() > enough) break;
    const std::optional<QueueRow> row = LockQueueRow(context.db, pk);
    if (!row) continue;
    auto ended = EndForGood(context, *row, MaxPendingExceeded(*row));
    if (!ended.ok()) return ended.status();
    ++report.max_pending;
    report.changed.push_back(ReadKey(context.db, pk));
  }
  return absl::OkStatus();
}

template <class Context>
void SweepExpired(const Context& context, std::chrono::steady_clock::time_point enough,
                  SweepReport& report) {
  const auto expired = Keys(context.db.Query(
      absl::StrCat(
          "SELECT pk FROM jobs WHERE expire_time IS NOT NULL AND state >= 4 AND expire_time <= $1"
          " ORDER BY expire_time LIMIT $2",
          context.db.kSkipLocked),
      context.now, context.policy.max_removed_per_sweep));
  for (int64_t pk : expired) {
    if (std::chrono::steady_clock::now() > enough) break;
    report.removed.push_back(ReadKey(context.db, pk));
    report.changed.push_back(report.removed.back());
    RemoveJob(context.db, pk, context.now);
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
