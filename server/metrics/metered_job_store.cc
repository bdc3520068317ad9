#include "server/metrics/metered_job_store.h"

#include <algorithm>
#include <cctype>
#include <functional>
#include <set>
#include <type_traits>
#include <utility>

#include "common/errors.h"
#include "common/signal_name.h"

namespace quantry::server {
namespace {

// The store's fault, not the caller's.
bool IsFault(const absl::Status& status) {
  if (ReasonOf(status).starts_with("QUOTA_")) return false;
  const absl::StatusCode code = status.code();
  return code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kInternal ||
         code == absl::StatusCode::kResourceExhausted || code == absl::StatusCode::kUnknown ||
         code == absl::StatusCode::kDataLoss;
}

const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <class T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

// nullptr: nobody asked.
const char* OutcomeOf(Reuse reuse) {
  switch (reuse) {
    case Reuse::kHit:
      return "hit";
    case Reuse::kJoined:
      return "joined";
    case Reuse::kMiss:
      return "miss";
    case Reuse::kNotAsked:
      break;
  }
  return nullptr;
}

class Metered : public JobStore {
 public:
  Metered(std::unique_ptr<JobStore> store, const Clock* clock, ServerMetrics* metrics)
      : store_(std::move(store)), clock_(clock), metrics_(metrics) {}

  absl::StatusOr<SubmitResult> Submit(const SubmitRequest& request, Time now) override {
    auto result = Timed("submit", [&] { return store_->Submit(request, now); });
    if (!result.ok() || !result->created) return result;
    metrics_->jobs_submitted.Increment();
    if (const char* outcome = OutcomeOf(result->reuse)) {
      metrics_->result_cache.With({outcome}).Increment();
    }
    if (IsEnded(result->job.state)) CountEnded(result->job, metrics_);
    return result;
  }
  absl::StatusOr<Job> Get(const JobKey& key) override {
    return Timed("get", [&] { return store_->Get(key); });
  }
  absl::StatusOr<JobPage> List(const ListQuery& query) override {
    return Timed("list", [&] { return store_->List(query); });
  }
  absl::StatusOr<Job> Update(const UpdateRequest& request, Time now) override {
    return Timed("update", [&] { return store_->Update(request, now); });
  }
  absl::StatusOr<Job> Cancel(const CancelRequest& request, Time now) override {
    return CountingEnd(
        request.key, [&] { return Timed("cancel", [&] { return store_->Cancel(request, now); }); });
  }
  absl::StatusOr<Job> Retry(const RetryRequest& request, Time now) override {
    return Timed("retry", [&] { return store_->Retry(request, now); });
  }
  absl::StatusOr<Job> Delete(const DeleteRequest& request, Time now) override {
    return Timed("delete", [&] { return store_->Delete(request, now); });
  }
  absl::StatusOr<TenantQuota> Quota(const std::string& tenant) override {
    return Timed("quota", [&] { return store_->Quota(tenant); });
  }
  absl::StatusOr<int64_t> ArtifactBytes(const std::string& tenant) override {
    return Timed("artifact_bytes", [&] { return store_->ArtifactBytes(tenant); });
  }
  absl::StatusOr<EventBatch> Events(const JobKey& key, int64_t after, int limit) override {
    return Timed("events", [&] { return store_->Events(key, after, limit); });
  }
  absl::StatusOr<Artifact> GetArtifact(const std::string& tenant, const std::string& uid) override {
    return Timed("get_artifact", [&] { return store_->GetArtifact(tenant, uid); });
  }
  absl::StatusOr<ArtifactPage> ListArtifacts(const std::string& tenant, int limit,
                                             std::optional<Cursor> after) override {
    return Timed("list_artifacts",
                 [&] { return store_->ListArtifacts(tenant, limit, std::move(after)); });
  }
  absl::StatusOr<int> RegisterWorker(const v1::WorkerInfo& worker, const std::string& session,
                                     Time now) override {
    auto lapsed =
        Timed("register_worker", [&] { return store_->RegisterWorker(worker, session, now); });
    if (lapsed.ok()) CountLost(*lapsed);
    return lapsed;
  }
  absl::StatusOr<std::optional<Grant>> Acquire(const AcquireRequest& request, Time now) override {
    auto result = Timed("acquire", [&] { return store_->Acquire(request, now); });
    // A repeat of an acquire_id finds an older start_time and is not counted.
    if (result.ok() && result->has_value() && (*result)->job.start_time == now) {
      metrics_->job_queue_seconds.Observe(ToSeconds(now - (*result)->job.create_time));
    }
    return result;
  }
  absl::StatusOr<HeartbeatReply> Heartbeat(const WorkerBeat& beat, Time now) override {
    auto result = Timed("heartbeat", [&] { return store_->Heartbeat(beat, now); });
    if (!result.ok()) return result;
    for (const BeatReply& reply : result->jobs) {
      if (reply.directive == v1::DIRECTIVE_LOST) {
        metrics_->stale_writes_rejected.With({"heartbeat"}).Increment();
      }
    }
    return result;
  }
  absl::Status CommitCheckpoint(const CheckpointRequest& request, Time now) override {
    return Guarded("commit_checkpoint", [&] { return store_->CommitCheckpoint(request, now); });
  }
  absl::Status Complete(const CompleteRequest& request, Time now) override {
    return CountingEnd(
        request.lease.job,
        [&] { return Guarded("complete", [&] { return store_->Complete(request, now); }); },
        // Without an artifact it was being cancelled.
        [&](const Job& job) {
          metrics_->job_attempts.With({job.has_artifact ? "succeeded" : "cancelled"}).Increment();
        });
  }
  absl::StatusOr<JobState> Fail(const FailRequest& request, Time now) override {
    auto result = CountingEnd(request.lease.job, [&] {
      return Guarded("fail", [&] { return store_->Fail(request, now); });
    });
    if (result.ok()) {
      const bool cancelled = *result == JobState::kCancelled;
      metrics_->job_attempts.With({cancelled ? "cancelled" : "failed"}).Increment();
      if (!cancelled && request.exit_signal > 0) {
        metrics_->engine_signals.With({SignalName(request.exit_signal)}).Increment();
      }
    }
    return result;
  }
  absl::Status Release(const LeaseToken& lease, const std::string& reason, Time now) override {
    absl::Status status = CountingEnd(lease.job, [&] {
      return Guarded("release", [&] { return store_->Release(lease, reason, now); });
    });
    if (status.ok()) metrics_->job_attempts.With({"released"}).Increment();
    return status;
  }
  absl::StatusOr<std::vector<Worker>> ListWorkers(const std::string& after, int limit,
                                                  Time now) override {
    return Timed("list_workers", [&] { return store_->ListWorkers(after, limit, now); });
  }
  absl::StatusOr<Worker> DrainWorker(const std::string& worker_id, bool terminate,
                                     Time now) override {
    return Timed("drain_worker", [&] { return store_->DrainWorker(worker_id, terminate, now); });
  }
  absl::Status PauseQueue(const std::string& reason, Time now) override {
    return Timed("pause_queue", [&] { return store_->PauseQueue(reason, now); });
  }
  absl::Status ResumeQueue() override {
    return Timed("resume_queue", [&] { return store_->ResumeQueue(); });
  }
  absl::StatusOr<TenantUsage> Usage(const std::string& tenant) override {
    return Timed("usage", [&] { return store_->Usage(tenant); });
  }
  absl::StatusOr<TenantUsage> SetQuota(const TenantQuota& quota) override {
    return Timed("set_quota", [&] { return store_->SetQuota(quota); });
  }
  absl::StatusOr<SweepReport> Sweep(Time now) override {
    auto result = Timed("sweep", [&] { return store_->Sweep(now); });
    if (!result.ok()) return result;
    metrics_->sweeper_last_run.Set(WallSeconds());
    CountLost(result->lost);
    metrics_->job_attempts.With({"no_progress"}).Increment(result->no_progress);
    metrics_->job_attempts.With({"max_run"}).Increment(result->max_run);
    const std::set<JobKey> removed(result->removed.begin(), result->removed.end());
    for (const JobKey& key : result->changed) {
      if (removed.contains(key)) continue;
      const auto job = store_->Get(key);
      if (job.ok() && IsEnded(job->state)) CountEnded(*job, metrics_);
    }
    return result;
  }
  absl::StatusOr<StoreStats> Stats(Time now) override {
    return Timed("stats", [&] { return store_->Stats(now); });
  }
  absl::StatusOr<std::vector<Garbage>> ListGarbage(int limit) override {
    return Timed("list_garbage", [&] { return store_->ListGarbage(limit); });
  }
  absl::Status ForgetGarbage(const Garbage& garbage) override {
    return Timed("forget_garbage", [&] { return store_->ForgetGarbage(garbage); });
  }
  absl::StatusOr<std::vector<JobReferences>> ListReferences(const std::string& after,
                                                            int limit) override {
    return Timed("list_references", [&] { return store_->ListReferences(after, limit); });
  }
  absl::Status Ping() override {
    return Timed("ping", [&] { return store_->Ping(); });
  }

 private:
  void CountLost(int leases) {
    metrics_->lease_expired.Increment(leases);
    metrics_->job_attempts.With({"lost"}).Increment(leases);
  }

  template <class Call>
  std::invoke_result_t<const Call&> Timed(const std::string& op, const Call& call) {
    const MonotonicTime start = clock_->Monotonic();
    auto result = call();
    const std::chrono::duration<double> took = clock_->Monotonic() - start;
    metrics_->store_op_seconds.With({op}).Observe(took.count());
    if (const absl::Status& status = StatusOf(result); IsFault(status)) {
      metrics_->store_errors.With({op, StatusName(status.code())}).Increment();
    }
    return result;
  }

  template <class Call>
  std::invoke_result_t<const Call&> Guarded(const std::string& op, const Call& call) {
    auto result = Timed(op, call);
    if (HasReason(StatusOf(result), Reason::kLeaseLost)) {
      metrics_->stale_writes_rejected.With({op}).Increment();
    }
    return result;
  }

  // Counts a job that ends in this call, and only then: repeats find it ended.
  template <class Call>
  std::invoke_result_t<const Call&> CountingEnd(
      const JobKey& key, const Call& call,
      const std::function<void(const Job& ended)>& also = [](const Job&) {}) {
    const auto before = store_->Get(key);
    auto result = call();
    if (before.ok() && !IsEnded(before->state)) {
      const auto after = store_->Get(key);
      if (after.ok() && IsEnded(after->state)) {
        CountEnded(*after, metrics_);
        also(*after);
      }
    }
    return result;
  }

  std::unique_ptr<JobStore> store_;
  const Clock* clock_;
  ServerMetrics* metrics_;
};

}  // namespace

void CountEnded(const Job& job, ServerMetrics* metrics) {
  const std::string method = MethodName(job.spec.method());
  std::string outcome(JobStateName(job.state));
  std::transform(outcome.begin(), outcome.end(), outcome.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  metrics->jobs_finished.With({method, outcome}).Increment();
  if (job.start_time && job.end_time) {
    metrics->job_run_seconds.With({method}).Observe(ToSeconds(*job.end_time - *job.start_time));
  }
}

std::unique_ptr<JobStore> MeteredJobStore(std::unique_ptr<JobStore> store, const Clock* clock,
                                          ServerMetrics* metrics) {
  return std::make_unique<Metered>(std::move(store), clock, metrics);
}

}  // namespace quantry::server
