// A job as its watches read it. A change wakes all of them at once: those of
// one job share what one of them has read of the store.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "server/jobs/job_store.h"

namespace quantry::server {

// Thread-safe. While the store is asked, others who ask for the same job wait
// for its answer. What was read is kept only while several watch.
//
// A store that does not answer is asked once for all of them: who asks within
// kFailureStands of a failed read gets that failure, and the first one after it
// asks the store again.
class SharedJob : public std::enable_shared_from_this<SharedJob> {
 public:
  static constexpr auto kFailureStands = std::chrono::seconds(1);

  SharedJob(JobStore* store, const Clock* clock, JobKey key)
      : store_(store), clock_(clock), key_(std::move(key)) {}

  // As it was at `since` or later: who was woken at that time sees what it was
  // woken for.
  absl::StatusOr<std::shared_ptr<const Job>> Get(MonotonicTime since);
  // The first events after `after`, at most `limit`; all up to the sequence
  // `last`, or `limit` of them. They are of the job `uid`, or else of the one that
  // has its name by now: look at theirs.
  absl::StatusOr<std::shared_ptr<const EventBatch>> Events(const std::string& uid,
                                                           std::int64_t after, std::int64_t last,
                                                           int limit);

 private:
  bool Shared() const { return weak_from_this().use_count() > 1; }
  bool FailureStands() const { return !failure_.ok() && clock_->Monotonic() < failure_ends_; }
  absl::Status Failed(const absl::Status& status);

  JobStore* const store_;
  const Clock* const clock_;
  const JobKey key_;
  std::mutex mutex_;
  // What was read last and when that began; guarded by mutex_.
  std::shared_ptr<const Job> job_;
  MonotonicTime read_at_{};
  std::shared_ptr<const EventBatch> events_;
  std::int64_t events_after_ = 0;
  absl::Status failure_;  // of the last read, and until when it stands
  MonotonicTime failure_ends_{};
};

// Those that are watched. Thread-safe; outlives what it gives.
class SharedJobs {
 public:
  std::shared_ptr<SharedJob> Of(JobStore* store, const Clock* clock, const JobKey& key);

 private:
  std::mutex mutex_;
  std::map<JobKey, std::weak_ptr<SharedJob>> jobs_;  // guarded by mutex_
};

}  // namespace quantry::server
