#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "server/jobs/job_store.h"
#include "server/jobs/operator_view.h"
#include "server/status/block_losses.h"
#include "server/status/status_json.h"

namespace quantry::server {

// Reads from the store what the pages show. Counters come from StoreStats and
// lists from an index, so that a look costs the same whatever the store holds;
// many viewers cost one look a second. One thread.
class StatusReader {
 public:
  // All outlive it.
  StatusReader(JobStore* store, OperatorView* view, const Clock* clock)
      : store_(store), view_(view), clock_(clock), trails_(store) {}

  // The text of /status.json. Errors are the store's.
  absl::StatusOr<std::string> Status();
  // The text of /jobs/TENANT/ID.json. NOT_FOUND JOB_NOT_FOUND.
  absl::StatusOr<std::string> JobPage(const JobKey& key);

 private:
  absl::StatusOr<Json> Look(Time now);

  JobStore* store_;
  OperatorView* view_;
  const Clock* clock_;
  LossTrails trails_;  // of running jobs
  MonotonicTime looked_at_{};
  std::optional<std::string> status_;
};

}  // namespace quantry::server
