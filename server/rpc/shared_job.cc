#include "server/rpc/shared_job.h"

#include <utility>

namespace quantry::server {

absl::StatusOr<std::shared_ptr<const Job>> SharedJob::Get(MonotonicTime since) {
  const std::lock_guard lock(mutex_);
  if (job_ != nullptr && read_at_ >= since) return job_;
  if (FailureStands()) return failure_;
  const MonotonicTime begun = clock_->Monotonic();
  absl::StatusOr<Job> job = store_->Get(key_);
  job_.reset();
  if (!job.ok()) return Failed(job.status());
  auto found = std::make_shared<const Job>(*std::move(job));
  if (Shared()) job_ = found;
  read_at_ = begun;
  return found;
}

absl::StatusOr<std::shared_ptr<const EventBatch>> SharedJob::Events(const std::string& uid,
                                                                    std::int64_t after,
                                                                    std::int64_t last, int limit) {
  const std::lock_guard lock(mutex_);
  // Events of a job never change: what was read once is right for ever.
  if (events_ != nullptr && events_->uid == uid && events_after_ == after) {
    const auto& events = events_->events;
    const bool enough = static_cast<int>(events.size()) >= limit ||
                        (!events.empty() && events.back().sequence() >= last);
    if (enough) return events_;
  }
  if (FailureStands()) return failure_;
  absl::StatusOr<EventBatch> batch = store_->Events(key_, after, limit);
  if (!batch.ok()) return Failed(batch.status());
  auto read = std::make_shared<const EventBatch>(*std::move(batch));
  events_ = Shared() ? read : nullptr;
  events_after_ = after;
  return read;
}

// An answer that says no is no failure of the store.
absl::Status SharedJob::Failed(const absl::Status& status) {
  if (!absl::IsUnavailable(status)) return status;
  failure_ = status;
  failure_ends_ = clock_->Monotonic() + kFailureStands;
  return status;
}

std::shared_ptr<SharedJob> SharedJobs::Of(JobStore* store, const Clock* clock, const JobKey& key) {
  const std::lock_guard lock(mutex_);
  std::weak_ptr<SharedJob>& known = jobs_[key];
  if (std::shared_ptr<SharedJob> job = known.lock()) return job;
  std::shared_ptr<SharedJob> job(new SharedJob(store, clock, key), [this, key](SharedJob* last) {
    delete last;
    const std::lock_guard gone(mutex_);
    const auto row = jobs_.find(key);
    if (row != jobs_.end() && row->second.expired()) jobs_.erase(row);
  });
  known = job;
  return job;
}

}  // namespace quantry::server
