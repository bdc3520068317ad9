#pragma once

#include <functional>
#include <stop_token>

#include "common/clock.h"
#include "server/jobs/job_store.h"

namespace quantry::server {

// Calls JobStore::Sweep regularly. Thread-compatible: one loop per object.
class Sweeper {
 public:
  struct Options {
    Duration interval = std::chrono::seconds(5);
    // Sees every result, errors included: logging and metrics.
    std::function<void(const absl::StatusOr<SweepReport>&)> on_sweep;
  };

  // All pointers outlive the sweeper.
  Sweeper(JobStore* store, const Clock* clock, Options options);

  // One iteration.
  absl::Status RunOnce();
  // Iterates until stopped; an iteration that failed is tried again at the
  // next interval. Run it in a std::jthread.
  void Run(std::stop_token stop);

 private:
  JobStore* store_;
  const Clock* clock_;
  Options options_;
};

}  // namespace quantry::server
