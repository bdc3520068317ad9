#include "server/rpc/worker_service.h"

#include <chrono>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checked.h"
#include "common/digest.h"
#include "common/engine_error.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/utf8_prefix.h"
#include "quantry/v1/worker_service.grpc.pb.h"
#include "server/rpc/acquire.h"
#include "server/rpc/committed_manifest.h"
#include "server/rpc/convert.h"
#include "server/rpc/service_base.h"
#include "server/rpc/violations.h"

namespace quantry::server {
namespace {

using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

constexpr int kMaxBeatsPerCall = 1024;
constexpr size_t kMaxReasonBytes = 1024;

class WorkerCalls : public v1::WorkerService::CallbackService, private ServiceBase<WorkerCalls> {
  friend ServiceBase;

 public:
  explicit WorkerCalls(const ServiceContext* context)
      : ServiceBase(context, "WorkerService", context->runtime->worker) {}

  ServerUnaryReactor* RegisterWorker(CallbackServerContext* call,
                                     const v1::RegisterWorkerRequest* request,
                                     v1::RegisterWorkerResponse* response) override {
    return Run("RegisterWorker", call, request, response, &WorkerCalls::Register);
  }
  ServerUnaryReactor* AcquireJob(CallbackServerContext* call, const v1::AcquireJobRequest* request,
                                 v1::AcquireJobResponse* response) override {
    return StartAcquire(context_, call, *request, response);
  }
  ServerUnaryReactor* Heartbeat(CallbackServerContext* call, const v1::HeartbeatRequest* request,
                                v1::HeartbeatResponse* response) override {
    return Run("Heartbeat", call, request, response, &WorkerCalls::Beats);
  }
  ServerUnaryReactor* CommitCheckpoint(CallbackServerContext* call,
                                       const v1::CommitCheckpointRequest* request,
                                       v1::CommitCheckpointResponse* response) override {
    return Run("CommitCheckpoint", call, request, response, &WorkerCalls::Checkpoint);
  }
  ServerUnaryReactor* CompleteJob(CallbackServerContext* call,
                                  const v1::CompleteJobRequest* request,
                                  v1::CompleteJobResponse* response) override {
    return RunOn(runtime_->commits, "CompleteJob", call, request, response, &WorkerCalls::Complete);
  }
  ServerUnaryReactor* FailJob(CallbackServerContext* call, const v1::FailJobRequest* request,
                              v1::FailJobResponse* response) override {
    return Run("FailJob", call, request, response, &WorkerCalls::Fail);
  }
  ServerUnaryReactor* ReleaseJob(CallbackServerContext* call, const v1::ReleaseJobRequest* request,
                                 v1::ReleaseJobResponse* response) override {
    return Run("ReleaseJob", call, request, response, &WorkerCalls::Release);
  }

 private:
  absl::Status Register(const v1::RegisterWorkerRequest& request,
                        v1::RegisterWorkerResponse* response) {
    if (absl::Status status = CheckWorkerInfo(request.worker()); !status.ok()) return status;
    const std::string session = NewUuid4();
    const auto lapsed =
        context_->store->RegisterWorker(request.worker(), session, context_->clock->Now());
    if (!lapsed.ok()) return lapsed.status();
    log::Info("worker registered", {{"worker", request.worker().worker_id()},
                                    {"incarnation", request.worker().incarnation()},
                                    {"slots", request.worker().slots()},
                                    {"leases_lapsed", *lapsed}});
    response->set_session(session);
    *response->mutable_lease_ttl() = ToProto(context_->lease_ttl);
    *response->mutable_heartbeat_interval() = ToProto(context_->heartbeat_interval);
    return absl::OkStatus();
  }

  absl::Status Beats(const v1::HeartbeatRequest& request, v1::HeartbeatResponse* response) {
    if (request.jobs_size() > kMaxBeatsPerCall) {
      return MakeError(
          Reason::kInvalidArgument,
          absl::StrCat("jobs: wanted at most ", kMaxBeatsPerCall, ", got ", request.jobs_size()));
    }
    if (request.refusal().size() > kMaxReasonBytes) {
      return MakeError(Reason::kInvalidArgument, "refusal: wanted at most 1024 bytes, got more");
    }
    WorkerBeat worker{.session = request.session(), .refusal = request.refusal()};
    std::vector<Violations> left_out;  // of each job
    for (const v1::JobBeat& job : request.jobs()) {
      auto beat = FromProto(job, &left_out.emplace_back());
      if (beat.ok()) {
        worker.jobs.push_back(*std::move(beat));
      } else {
        left_out.back().Add("job", std::string(beat.status().message()));
        AddLost(job, response);
      }
    }
    auto reply = context_->store->Heartbeat(worker, context_->clock->Now());
    if (!reply.ok()) return reply.status();
    response->MergeFrom(ToProto(*reply));
    for (size_t i = 0; i < left_out.size(); ++i) {
      const v1::JobBeat& job = request.jobs(static_cast<int>(i));
      Tell(reply->worker_id, job.job(), job.epoch(), left_out[i]);
    }
    return absl::OkStatus();
  }

  // Nobody holds a job of a name that none can have.
  static void AddLost(const v1::JobBeat& beat, v1::HeartbeatResponse* response) {
    v1::JobDirective& lost = *response->add_jobs();
    lost.set_job(beat.job());
    lost.set_epoch(beat.epoch());
    lost.set_directive(v1::DIRECTIVE_LOST);
    lost.set_job_uid(beat.job_uid());
  }

  // What of a call was not taken. A worker repeats it with every beat: told once
  // an attempt and field. `worker` is "" where the call does not say.
  void Tell(const std::string& worker, const std::string& job, std::int64_t epoch,
            const Violations& left_out) {
    for (const FieldViolation& violation : left_out.first()) {
      if (!told_.IsNew(absl::StrCat(job, "/", epoch, " ", violation.field))) continue;
      log::Warning("left out what a worker sent out of bounds",
                   {{"worker", worker},
                    {"job", Utf8Prefix(job, kMaxReasonBytes)},
                    {"epoch", epoch},
                    {"field", violation.field},
                    {"error", violation.description}});
    }
  }

  template <class Request>
  absl::StatusOr<AttemptEvents> EventsOf(const Request& request) {
    Violations left_out;
    auto events = EventsFromProto(request.event_offset(), request.events(), &left_out);
    Tell("", request.job(), request.epoch(), left_out);
    return events;
  }

  template <class Request>
  static absl::StatusOr<LeaseToken> LeaseOf(const Request& request) {
    return LeaseFromProto(request.session(), request.job(), request.epoch(), request.job_uid());
  }

  // Whether `job`, which has the name now, is the one leased, in that attempt.
  static bool IsLeasedOne(const Job& job, const LeaseToken& lease) {
    return job.epoch == lease.epoch && (lease.uid.empty() || lease.uid == job.uid);
  }

  absl::Status Checkpoint(const v1::CommitCheckpointRequest& request,
                          v1::CommitCheckpointResponse*) {
    auto lease = LeaseOf(request);
    if (!lease.ok()) return lease.status();
    if (absl::Status status = CheckCheckpoint(request.checkpoint()); !status.ok()) return status;
    if (absl::Status status = CheckPlace(*lease, request.checkpoint().uri()); !status.ok()) {
      return status;
    }
    auto events = EventsOf(request);
    if (!events.ok()) return events.status();
    return context_->store->CommitCheckpoint({*lease, request.checkpoint(), *std::move(events)},
                                             context_->clock->Now());
  }

  // The job's next worker reads what is there, and removes it, as itself.
  absl::Status CheckPlace(const LeaseToken& lease, const std::string& uri) {
    const auto job = context_->store->Get(lease.job);
    // Deleted, or another attempt's by now: for the store to refuse.
    if (HasReason(job.status(), Reason::kJobNotFound)) return absl::OkStatus();
    if (!job.ok()) return job.status();
    if (!IsLeasedOne(*job, lease)) return absl::OkStatus();
    const std::string place =
        context_->artifacts->CheckpointUri(lease.job.tenant, job->uid, lease.epoch);
    if (LiesBelow(place, uri)) return absl::OkStatus();
    return MakeError(Reason::kInvalidArgument,
                     absl::StrCat("checkpoint.uri: wanted ", place, " or below, got ",
                                  Utf8Prefix(uri, kMaxReasonBytes)));
  }

  absl::Status Complete(const v1::CompleteJobRequest& request, v1::CompleteJobResponse*) {
    auto lease = LeaseOf(request);
    if (!lease.ok()) return lease.status();
    if (!IsSha256Hex(request.manifest_sha256())) {
      return MakeError(Reason::kInvalidArgument,
                       "manifest_sha256: wanted 64 lower-case hex digits");
    }
    auto events = EventsOf(request);
    if (!events.ok()) return events.status();
    auto job = context_->store->Get(lease->job);
    if (!job.ok()) return job.status();
    CompleteRequest complete{.lease = *lease,
                             .manifest_sha256 = request.manifest_sha256(),
                             .artifact_uri = context_->artifacts->OutputUri(
                                 lease->job.tenant, job->uid, request.epoch()),
                             .result = request.result(),
                             .events = *std::move(events)};
    complete.result.set_artifact_uri(complete.artifact_uri);
    // The files are counted of this job; the name may be another's before that is done.
    if (lease->uid.empty()) complete.lease.uid = job->uid;
    // A stale epoch is refused by the store; it need not have its files.
    if (IsLeasedOne(*job, *lease) && !IsEnded(job->state)) {
      const OneCheck check(&checks_, absl::StrCat(job->uid, "/", request.epoch()));
      if (!check.first()) return CheckGoesOn(request.job());
      if (absl::Status status = CountArtifact(&complete); !status.ok()) return status;
    }
    return context_->store->Complete(complete, context_->clock->Now());
  }

  // A worker that waited long enough for an answer asks again, while its first
  // call still waits for the object store: one of them takes a thread.
  struct Checks {
    std::mutex mutex;
    std::set<std::string> running;  // guarded by mutex; uid/epoch
  };
  class OneCheck {
   public:
    OneCheck(Checks* checks, std::string key) : checks_(checks), key_(std::move(key)) {
      const std::lock_guard lock(checks_->mutex);
      first_ = checks_->running.insert(key_).second;
    }
    ~OneCheck() {
      if (!first_) return;
      const std::lock_guard lock(checks_->mutex);
      checks_->running.erase(key_);
    }
    OneCheck(const OneCheck&) = delete;
    OneCheck& operator=(const OneCheck&) = delete;
    bool first() const { return first_; }

   private:
    Checks* const checks_;
    const std::string key_;
    bool first_;
  };
  static absl::Status CheckGoesOn(const std::string& job) {
    return MakeDetailedError(
        Reason::kStorageError,
        absl::StrCat(job, ": an earlier call still checks this artifact; ask again"),
        {.retry_after = std::chrono::seconds(1)});
  }

  // Nothing becomes visible that is not there whole, and quotas go by what is there
  // and not by what a worker says.
  absl::Status CountArtifact(CompleteRequest* complete) {
    Artifact artifact;
    artifact.uri = complete->artifact_uri;
    artifact.manifest_sha256 = complete->manifest_sha256;
    std::int64_t manifest_bytes = 0;
    auto manifest = ReadManifest(context_->artifacts, artifact, &manifest_bytes);
    if (!manifest.ok()) return manifest.status();
    std::set<std::string_view> seen;
    complete->total_bytes = manifest_bytes;
    complete->file_count = manifest->files_size() + 1;
    for (const v1::ArtifactFile& file : manifest->files()) {
      if (!seen.insert(file.path()).second) return NotAsListed(file, "the same path again");
      auto reader = context_->artifacts->Open(artifact.uri, file.path());
      if (!reader.ok() && !HasReason(reader.status(), Reason::kArtifactNotFound)) {
        return reader.status();
      }
      if (!reader.ok()) return NotAsListed(file, "no file");
      const std::int64_t size = (*reader)->size_bytes();
      const auto total = CheckedAdd(complete->total_bytes, size);
      if (size != file.size_bytes() || !total) return NotAsListed(file, absl::StrCat(size));
      complete->total_bytes = *total;
    }
    return absl::OkStatus();
  }

  static absl::Status NotAsListed(const v1::ArtifactFile& file, const std::string& got) {
    return MakeError(Reason::kArtifactCorrupt,
                     absl::StrCat(file.path(), ": wanted ", file.size_bytes(), " bytes, got ", got),
                     {{"path", file.path()}});
  }

  absl::Status Fail(const v1::FailJobRequest& request, v1::FailJobResponse* response) {
    auto lease = LeaseOf(request);
    if (!lease.ok()) return lease.status();
    if (request.log_tail().size() > kMaxLogTailBytes ||
        request.error().message().size() > kMaxErrorMessageBytes) {
      return MakeError(Reason::kInvalidArgument,
                       "wanted a log_tail of at most 16 KiB and a message of at most 8 KiB");
    }
    auto events = EventsOf(request);
    if (!events.ok()) return events.status();
    const v1::EngineError error = Bounded(request.error());
    auto state = context_->store->Fail({.lease = *lease,
                                        .error = error,
                                        .retryable = request.retryable(),
                                        .exit_code = request.exit_code(),
                                        .exit_signal = request.exit_signal(),
                                        .log_tail = request.log_tail(),
                                        .cancelled = request.cancelled(),
                                        .events = *std::move(events)},
                                       context_->clock->Now());
    if (!state.ok()) return state.status();
    log::Info("attempt failed", {{"job", request.job()},
                                 {"epoch", request.epoch()},
                                 {"reason", error.reason()},
                                 {"error", error.message()},
                                 {"state", JobStateName(*state)}});
    response->set_state(ToProto(*state));
    return absl::OkStatus();
  }

  absl::Status Release(const v1::ReleaseJobRequest& request, v1::ReleaseJobResponse*) {
    auto lease = LeaseOf(request);
    if (!lease.ok()) return lease.status();
    return context_->store->Release(*lease, Utf8Prefix(request.reason(), kMaxReasonBytes),
                                    context_->clock->Now());
  }

  // Forgets what it was asked once that is too much; then things are told again.
  class Told {
   public:
    bool IsNew(const std::string& what) {
      const std::lock_guard lock(mutex_);
      if (known_.size() >= kMaxKnown) known_.clear();
      return known_.insert(Sha256Hex(what)).second;
    }

   private:
    static constexpr size_t kMaxKnown = 10'000;
    std::mutex mutex_;
    std::set<std::string> known_;  // guarded by mutex_; digests: names may be long
  };

  Checks checks_;
  Told told_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewWorkerService(const ServiceContext* context) {
  return std::make_unique<WorkerCalls>(context);
}

}  // namespace quantry::server
