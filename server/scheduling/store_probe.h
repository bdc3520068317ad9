#pragma once

#include <functional>
#include <mutex>
#include <stop_token>

#include "absl/status/status.h"
#include "common/clock.h"

namespace quantry::server {

// Asks the store again and again whether it answers, so that whoever wants to
// know (a probe of the process) need not wait for a store that hangs. One loop
// per object; Status() from any thread.
class StoreProbe {
 public:
  struct Options {
    std::function<absl::Status()> ask;  // may block for as long as the store does
    Duration interval = std::chrono::seconds(1);
    // A store that says nothing for this long counts as away.
    Duration patience = std::chrono::seconds(5);
  };

  // The clock outlives the probe. Counts as answered until the first answer:
  // the store was opened just now.
  StoreProbe(const Clock* clock, Options options);

  // The last answer; UNAVAILABLE when it is older than `patience`. Never blocks.
  absl::Status Status() const;

  // One iteration.
  void RunOnce();
  // Iterates until stopped. Run it in a std::jthread.
  void Run(const std::stop_token& stop);

 private:
  const Clock* clock_;
  const Options options_;
  mutable std::mutex mutex_;
  absl::Status last_;       // guarded by mutex_
  MonotonicTime answered_;  // guarded by mutex_
};

}  // namespace quantry::server
