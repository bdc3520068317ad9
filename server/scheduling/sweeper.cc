#include "server/scheduling/sweeper.h"

#include <condition_variable>
#include <mutex>
#include <utility>

namespace quantry::server {

Sweeper::Sweeper(JobStore* store, const Clock* clock, Options options)
    : store_(store), clock_(clock), options_(std::move(options)) {}

absl::Status Sweeper::RunOnce() {
  absl::StatusOr<SweepReport> report = store_->Sweep(clock_->Now());
  if (options_.on_sweep) options_.on_sweep(report);
  return report.status();
}

void Sweeper::Run(std::stop_token stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  std::unique_lock lock(mutex);
  while (!stop.stop_requested()) {
    RunOnce().IgnoreError();  // on_sweep has seen it
    stopped.wait_for(lock, stop, options_.interval, [] { return false; });
  }
}

}  // namespace quantry::server
