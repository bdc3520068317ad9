#include "server/scheduling/notifying_job_store.h"

#include <utility>

namespace quantry::server {
namespace {

class Notifying : public JobStore {
 public:
  Notifying(std::unique_ptr<JobStore> store, WakeupHub* hub)
      : store_(std::move(store)), hub_(hub) {}

  absl::StatusOr<SubmitResult> Submit(const SubmitRequest& request, Time now) override {
    auto result = store_->Submit(request, now);
    if (result.ok() && result->created) hub_->WorkAvailable();
    return result;
  }
  absl::StatusOr<Job> Get(const JobKey& key) override { return store_->Get(key); }
  absl::StatusOr<JobPage> List(const ListQuery& query) override { return store_->List(query); }
  absl::StatusOr<Job> Update(const UpdateRequest& request, Time now) override {
    return Changed(request.key, store_->Update(request, now));
  }
  absl::StatusOr<Job> Cancel(const CancelRequest& request, Time now) override {
    return Changed(request.key, store_->Cancel(request, now));
  }
  absl::StatusOr<Job> Retry(const RetryRequest& request, Time now) override {
    auto job = Changed(request.key, store_->Retry(request, now));
    if (job.ok()) hub_->WorkAvailable();
    return job;
  }
  absl::StatusOr<Job> Delete(const DeleteRequest& request, Time now) override {
    return Changed(request.key, store_->Delete(request, now));
  }
  absl::StatusOr<TenantQuota> Quota(const std::string& tenant) override {
    return store_->Quota(tenant);
  }
  absl::StatusOr<int64_t> ArtifactBytes(const std::string& tenant) override {
    return store_->ArtifactBytes(tenant);
  }
  absl::StatusOr<EventBatch> Events(const JobKey& key, int64_t after, int limit) override {
    return store_->Events(key, after, limit);
  }
  absl::StatusOr<Artifact> GetArtifact(const std::string& tenant, const std::string& uid) override {
    return store_->GetArtifact(tenant, uid);
  }
  absl::StatusOr<ArtifactPage> ListArtifacts(const std::string& tenant, int limit,
                                             std::optional<Cursor> after) override {
    return store_->ListArtifacts(tenant, limit, std::move(after));
  }

  // May give up the leases of the incarnation before.
  absl::StatusOr<int> RegisterWorker(const v1::WorkerInfo& worker, const std::string& session,
                                     Time now) override {
    auto lapsed = store_->RegisterWorker(worker, session, now);
    if (lapsed.ok()) hub_->WorkAvailable();
    return lapsed;
  }
  absl::StatusOr<std::optional<Grant>> Acquire(const AcquireRequest& request, Time now) override {
    auto grant = store_->Acquire(request, now);
    if (grant.ok() && *grant) hub_->JobChanged((*grant)->job.key);
    return grant;
  }
  absl::StatusOr<HeartbeatReply> Heartbeat(const WorkerBeat& beat, Time now) override {
    auto reply = store_->Heartbeat(beat, now);
    if (!reply.ok()) return reply;
    for (const BeatReply& job : reply->jobs) {
      if (job.directive != v1::DIRECTIVE_LOST) hub_->JobChanged(job.job);
    }
    return reply;
  }
  absl::Status CommitCheckpoint(const CheckpointRequest& request, Time now) override {
    return Changed(request.lease.job, store_->CommitCheckpoint(request, now));
  }
  // Also when it failed: a commit that came too late ends a cancelled job.
  absl::Status Complete(const CompleteRequest& request, Time now) override {
    auto status = store_->Complete(request, now);
    hub_->JobChanged(request.lease.job);
    hub_->WorkAvailable();  // of a tenant at its quota
    return status;
  }
  absl::StatusOr<JobState> Fail(const FailRequest& request, Time now) override {
    auto state = Changed(request.lease.job, store_->Fail(request, now));
    if (state.ok()) hub_->WorkAvailable();  // this job, or another of a tenant at its quota
    return state;
  }
  absl::Status Release(const LeaseToken& lease, const std::string& reason, Time now) override {
    auto status = Changed(lease.job, store_->Release(lease, reason, now));
    if (status.ok()) hub_->WorkAvailable();
    return status;
  }

  absl::StatusOr<std::vector<Worker>> ListWorkers(const std::string& after, int limit,
                                                  Time now) override {
    return store_->ListWorkers(after, limit, now);
  }
  absl::StatusOr<Worker> DrainWorker(const std::string& worker_id, bool terminate,
                                     Time now) override {
    return store_->DrainWorker(worker_id, terminate, now);
  }
  absl::Status PauseQueue(const std::string& reason, Time now) override {
    return store_->PauseQueue(reason, now);
  }
  absl::Status ResumeQueue() override {
    auto status = store_->ResumeQueue();
    if (status.ok()) hub_->WorkAvailable();
    return status;
  }
  // May let jobs run that had to wait.
  absl::StatusOr<TenantUsage> Usage(const std::string& tenant) override {
    return store_->Usage(tenant);
  }
  absl::StatusOr<TenantUsage> SetQuota(const TenantQuota& quota) override {
    auto usage = store_->SetQuota(quota);
    if (usage.ok()) hub_->WorkAvailable();
    return usage;
  }
  absl::StatusOr<SweepReport> Sweep(Time now) override {
    auto report = store_->Sweep(now);
    if (!report.ok()) return report;
    for (const JobKey& job : report->changed) hub_->JobChanged(job);
    if (!report->changed.empty()) hub_->WorkAvailable();
    return report;
  }
  absl::StatusOr<StoreStats> Stats(Time now) override { return store_->Stats(now); }
  absl::StatusOr<std::vector<Garbage>> ListGarbage(int limit) override {
    return store_->ListGarbage(limit);
  }
  absl::Status ForgetGarbage(const Garbage& garbage) override {
    return store_->ForgetGarbage(garbage);
  }
  absl::StatusOr<std::vector<JobReferences>> ListReferences(const std::string& after,
                                                            int limit) override {
    return store_->ListReferences(after, limit);
  }
  absl::Status Ping() override { return store_->Ping(); }

 private:
  static bool IsOk(const absl::Status& status) { return status.ok(); }
  template <typename T>
  static bool IsOk(const absl::StatusOr<T>& result) {
    return result.ok();
  }
  template <typename Result>
  Result Changed(const JobKey& job, Result result) {
    if (IsOk(result)) hub_->JobChanged(job);
    return result;
  }

  std::unique_ptr<JobStore> store_;
  WakeupHub* hub_;
};

}  // namespace

std::unique_ptr<JobStore> NotifyingJobStore(std::unique_ptr<JobStore> store, WakeupHub* hub) {
  return std::make_unique<Notifying>(std::move(store), hub);
}

}  // namespace quantry::server
