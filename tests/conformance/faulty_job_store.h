#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <random>
#include <string>

#include "server/jobs/job_store.h"

namespace quantry::server {

// How often a call goes wrong. Seeded: one seed, one sequence of faults.
struct FaultPlan {
  double before = 0;  // UNAVAILABLE, nothing happened
  double after = 0;   // UNAVAILABLE though the call committed (F9)
  uint64_t seed = 1;
};

// A JobStore that answers STORE_UNAVAILABLE now and then. What it wraps must
// outlive it. Thread-safe.
class FaultyJobStore : public JobStore {
 public:
  FaultyJobStore(JobStore* store, const FaultPlan& plan)
      : store_(store), plan_(plan), random_(plan.seed) {}

  int faults() const { return faults_; }

  absl::StatusOr<SubmitResult> Submit(const SubmitRequest& request, Time now) override;
  absl::StatusOr<Job> Get(const JobKey& key) override;
  absl::StatusOr<JobPage> List(const ListQuery& query) override;
  absl::StatusOr<Job> Update(const UpdateRequest& request, Time now) override;
  absl::StatusOr<Job> Cancel(const CancelRequest& request, Time now) override;
  absl::StatusOr<Job> Delete(const DeleteRequest& request, Time now) override;
  absl::StatusOr<TenantQuota> Quota(const std::string& tenant) override {
    return store_->Quota(tenant);
  }
  absl::StatusOr<int64_t> ArtifactBytes(const std::string& tenant) override {
    return store_->ArtifactBytes(tenant);
  }
  absl::StatusOr<EventBatch> Events(const JobKey& key, int64_t after, int limit) override;
  absl::StatusOr<Artifact> GetArtifact(const std::string& tenant, const std::string& uid) override;
  absl::StatusOr<ArtifactPage> ListArtifacts(const std::string& tenant, int limit,
                                             std::optional<Cursor> after) override;
  absl::StatusOr<int> RegisterWorker(const v1::WorkerInfo& worker, const std::string& session,
                                     Time now) override;
  absl::StatusOr<std::optional<Grant>> Acquire(const AcquireRequest& request, Time now) override;
  absl::StatusOr<Job> Retry(const RetryRequest& request, Time now) override;
  absl::Status PauseQueue(const std::string& reason, Time now) override;
  absl::Status ResumeQueue() override;
  absl::StatusOr<TenantUsage> Usage(const std::string& tenant) override {
    return store_->Usage(tenant);
  }
  absl::StatusOr<TenantUsage> SetQuota(const TenantQuota& quota) override {
    return store_->SetQuota(quota);
  }
  absl::StatusOr<HeartbeatReply> Heartbeat(const WorkerBeat& beat, Time now) override;
  absl::Status CommitCheckpoint(const CheckpointRequest& request, Time now) override;
  absl::Status Complete(const CompleteRequest& request, Time now) override;
  absl::StatusOr<JobState> Fail(const FailRequest& request, Time now) override;
  absl::Status Release(const LeaseToken& lease, const std::string& reason, Time now) override;
  absl::StatusOr<std::vector<Worker>> ListWorkers(const std::string& after, int limit,
                                                  Time now) override;
  absl::StatusOr<Worker> DrainWorker(const std::string& worker_id, bool terminate,
                                     Time now) override;
  absl::StatusOr<SweepReport> Sweep(Time now) override;
  absl::StatusOr<StoreStats> Stats(Time now) override;
  absl::StatusOr<std::vector<Garbage>> ListGarbage(int limit) override;
  absl::Status ForgetGarbage(const Garbage& garbage) override;
  absl::StatusOr<std::vector<JobReferences>> ListReferences(const std::string& after,
                                                            int limit) override {
    return store_->ListReferences(after, limit);
  }
  absl::Status Ping() override;

 private:
  bool Draw(double rate);
  template <typename Call>
  auto Inject(const Call& call) -> decltype(call());

  JobStore* store_;
  const FaultPlan plan_;
  std::mutex mutex_;
  std::mt19937_64 random_;
  int faults_ = 0;
};

}  // namespace quantry::server
