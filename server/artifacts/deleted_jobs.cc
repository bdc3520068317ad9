#include "server/artifacts/deleted_jobs.h"

#include "absl/status/status.h"
#include "common/log.h"

namespace quantry::server {
namespace {

constexpr int kBatch = 100;
constexpr std::size_t kMostStuck = 10000;
// So many answers in a row that the store is away end a pass.
constexpr int kMostAway = 3;

}  // namespace

DeletedJobs::DeletedJobs(JobStore* jobs, ArtifactStore* artifacts)
    : jobs_(jobs),
      artifacts_(artifacts),
      thread_([this](const std::stop_token& stop) { Run(stop); }) {}

DeletedJobs::~DeletedJobs() = default;  // the thread is the last member: joined first

void DeletedJobs::Wake() {
  {
    const std::lock_guard lock(mutex_);
    wake_ = true;
  }
  woken_.notify_one();
}

void DeletedJobs::Run(const std::stop_token& stop) {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      if (!woken_.wait(lock, stop, [this] { return wake_; })) return;
      wake_ = false;
    }
    while (!stop.stop_requested() && RemoveBatch(stop) > 0) {
    }
  }
}

int DeletedJobs::RemoveBatch(const std::stop_token& stop) {
  const auto listed = jobs_->ListGarbage(kBatch + static_cast<int>(stuck_.size()));
  if (!listed.ok()) return 0;
  int removed = 0;
  away_ = 0;
  bool any_new = false;
  for (const Garbage& item : *listed) {
    const auto stuck = stuck_.find(item.job_uid);
    if (stuck != stuck_.end() && stuck->second) continue;
    any_new = true;
    if (stop.stop_requested() || !Remove(item, &removed)) return removed;
  }
  if (!any_new) {
    for (auto& [uid, left_out] : stuck_) left_out = false;
  }
  if (stuck_.size() > kMostStuck) stuck_.clear();
  return removed;
}

bool DeletedJobs::Remove(const Garbage& item, int* removed) {
  const absl::Status status = artifacts_->DeleteJob(item.tenant, item.job_uid);
  if (status.ok()) {
    away_ = 0;
    stuck_.erase(item.job_uid);
    // A database that cannot write must not have the store asked again at once.
    if (!jobs_->ForgetGarbage(item).ok()) return false;
    ++*removed;
    return true;
  }
  if (stuck_.insert_or_assign(item.job_uid, true).second) {
    log::Warning("cannot remove a deleted job's files",
                 {{"uid", item.job_uid}, {"error", std::string(status.message())}});
  }
  away_ = absl::IsUnavailable(status) ? away_ + 1 : 0;
  return away_ < kMostAway;
}

}  // namespace quantry::server
