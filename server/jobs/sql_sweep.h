#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "server/jobs/job_store.h"
#include "server/jobs/records.h"
#include "server/jobs/rules.h"

// What a sweep of either SQL store does about a lease.
namespace quantry::server::sql {

// What is wrong with a leased row, dealt with and counted; nullopt = nothing.
// `Context` is the store's; EndLost, EndForGood and EndFailed are those beside it.
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

}  // namespace quantry::server::sql
