#include "server/scheduling/store_probe.h"

#include <condition_variable>
#include <string>
#include <utility>

namespace quantry::server {

StoreProbe::StoreProbe(const Clock* clock, Options options)
    : clock_(clock), options_(std::move(options)), answered_(clock->Monotonic()) {}

absl::Status StoreProbe::Status() const {
  const std::lock_guard lock(mutex_);
  const auto age = clock_->Monotonic() - answered_;
  if (age <= options_.patience) return last_;
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(age).count();
  return absl::UnavailableError("no answer for " + std::to_string(seconds) + " s");
}

void StoreProbe::RunOnce() {
  absl::Status answer = options_.ask();
  const std::lock_guard lock(mutex_);
  last_ = std::move(answer);
  answered_ = clock_->Monotonic();
}

void StoreProbe::Run(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  std::unique_lock lock(mutex);
  while (!stop.stop_requested()) {
    RunOnce();
    stopped.wait_for(lock, stop, options_.interval, [] { return false; });
  }
}

}  // namespace quantry::server
