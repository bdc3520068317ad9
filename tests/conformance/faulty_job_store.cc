#include "tests/conformance/faulty_job_store.h"

#include <utility>

#include "common/errors.h"

namespace quantry::server {

bool FaultyJobStore::Draw(double rate) {
  std::lock_guard lock(mutex_);
  bool hit = std::uniform_real_distribution<>(0, 1)(random_) < rate;
  faults_ += hit;
  return hit;
}

template <typename Call>
auto FaultyJobStore::Inject(const Call& call) -> decltype(call()) {
  if (Draw(plan_.before)) return MakeError(Reason::kStoreUnavailable, "injected before the call");
  auto result = call();
  if (Draw(plan_.after)) return MakeError(Reason::kStoreUnavailable, "injected after the call");
  return result;
}

absl::StatusOr<SubmitResult> FaultyJobStore::Submit(const SubmitRequest& request, Time now) {
  return Inject([&] { return store_->Submit(request, now); });
}
absl::StatusOr<Job> FaultyJobStore::Get(const JobKey& key) {
  return Inject([&] { return store_->Get(key); });
}
absl::StatusOr<JobPage> FaultyJobStore::List(const ListQuery& query) {
  return Inject([&] { return store_->List(query); });
}
absl::StatusOr<Job> FaultyJobStore::Update(const UpdateRequest& request, Time now) {
  return Inject([&] { return store_->Update(request, now); });
}
absl::StatusOr<Job> FaultyJobStore::Cancel(const CancelRequest& request, Time now) {
  return Inject([&] { return store_->Cancel(request, now); });
}
absl::StatusOr<Job> FaultyJobStore::Delete(const DeleteRequest& request, Time now) {
  return Inject([&] { return store_->Delete(request, now); });
}
absl::StatusOr<EventBatch> FaultyJobStore::Events(const JobKey& key, int64_t after, int limit) {
  return Inject([&] { return store_->Events(key, after, limit); });
}
absl::StatusOr<Artifact> FaultyJobStore::GetArtifact(const std::string& tenant,
                                                     const std::string& uid) {
  return Inject([&] { return store_->GetArtifact(tenant, uid); });
}
absl::StatusOr<ArtifactPage> FaultyJobStore::ListArtifacts(const std::string& tenant, int limit,
                                                           std::optional<Cursor> after) {
  return Inject([&] { return store_->ListArtifacts(tenant, limit, after); });
}
absl::StatusOr<int> FaultyJobStore::RegisterWorker(const v1::WorkerInfo& worker,
                                                   const std::string& session, Time now) {
  return Inject([&] { return store_->RegisterWorker(worker, session, now); });
}
absl::StatusOr<std::optional<Grant>> FaultyJobStore::Acquire(const AcquireRequest& request,
                                                             Time now) {
  return Inject([&] { return store_->Acquire(request, now); });
}
absl::StatusOr<Job> FaultyJobStore::Retry(const RetryRequest& request, Time now) {
  return Inject([&] { return store_->Retry(request, now); });
}
absl::Status FaultyJobStore::PauseQueue(const std::string& reason, Time now) {
  return Inject([&] { return store_->PauseQueue(reason, now); });
}
absl::Status FaultyJobStore::ResumeQueue() {
  return Inject([&] { return store_->ResumeQueue(); });
}
absl::StatusOr<HeartbeatReply> FaultyJobStore::Heartbeat(const WorkerBeat& beat, Time now) {
  return Inject([&] { return store_->Heartbeat(beat, now); });
}
absl::Status FaultyJobStore::CommitCheckpoint(const CheckpointRequest& request, Time now) {
  return Inject([&] { return store_->CommitCheckpoint(request, now); });
}
absl::Status FaultyJobStore::Complete(const CompleteRequest& request, Time now) {
  return Inject([&] { return store_->Complete(request, now); });
}
absl::StatusOr<JobState> FaultyJobStore::Fail(const FailRequest& request, Time now) {
  return Inject([&] { return store_->Fail(request, now); });
}
absl::Status FaultyJobStore::Release(const LeaseToken& lease, const std::string& reason, Time now) {
  return Inject([&] { return store_->Release(lease, reason, now); });
}
absl::StatusOr<std::vector<Worker>> FaultyJobStore::ListWorkers(const std::string& after, int limit,
                                                                Time now) {
  return Inject([&] { return store_->ListWorkers(after, limit, now); });
}
absl::StatusOr<Worker> FaultyJobStore::DrainWorker(const std::string& worker_id, bool terminate,
                                                   Time now) {
  return Inject([&] { return store_->DrainWorker(worker_id, terminate, now); });
}
absl::StatusOr<SweepReport> FaultyJobStore::Sweep(Time now) {
  return Inject([&] { return store_->Sweep(now); });
}
absl::StatusOr<StoreStats> FaultyJobStore::Stats(Time now) {
  return Inject([&] { return store_->Stats(now); });
}
absl::StatusOr<std::vector<Garbage>> FaultyJobStore::ListGarbage(int limit) {
  return Inject([&] { return store_->ListGarbage(limit); });
}
absl::Status FaultyJobStore::ForgetGarbage(const Garbage& garbage) {
  return Inject([&] { return store_->ForgetGarbage(garbage); });
}
absl::Status FaultyJobStore::Ping() {
  return Inject([&] { return store_->Ping(); });
}

}  // namespace quantry::server
