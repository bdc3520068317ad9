#include "server/rpc/acquire.h"

#include <algorithm>
#include <utility>

#include "common/errors.h"
#include "common/ids.h"
#include "server/rpc/convert.h"
#include "server/rpc/stepped_call.h"

namespace quantry::server {
namespace {

using std::chrono::steady_clock;

// Jobs become claimable by time alone too (backoff), which wakes nobody.
constexpr auto kPoll = std::chrono::seconds(1);

class AcquireReactor : public SteppedCall<grpc::ServerUnaryReactor> {
 public:
  AcquireReactor(const ServiceContext* context, grpc::CallbackServerContext* call,
                 const v1::AcquireJobRequest& request, v1::AcquireJobResponse* response)
      : SteppedCall(context, context->runtime->worker, "/quantry.v1.WorkerService/AcquireJob", call,
                    request),
        response_(response),
        acquire_{.session = request.session(), .acquire_id = request.acquire_id()},
        deadline_(steady_clock::now() + std::clamp<Duration>(FromProto(request.wait()),
                                                             Duration::zero(), kMaxAcquireWait)) {
    Start();
  }

 private:
  void Step() override {
    if (const absl::Status status = Interrupted(); !status.ok()) return End(status);
    if (!subscribed_) {
      if (!IsUuid(acquire_.acquire_id)) {
        return End(MakeError(Reason::kInvalidArgument, "acquire_id: wanted a UUID"));
      }
      subscribed_ = true;
      subscription_ = context_->hub->OnWorkAvailable([task = task_] { task->Kick(); });
    }
    auto grant = context_->store->Acquire(acquire_, context_->clock->Now());
    if (!grant.ok()) return End(grant.status());
    if (grant->has_value()) {
      FillLease(**grant);
      return End(absl::OkStatus());
    }
    const auto now = steady_clock::now();
    if (now >= deadline_) return End(absl::OkStatus());
    WakeAt(std::min<MonotonicTime>(deadline_, now + kPoll));
  }

  void FillLease(const Grant& grant) {
    const Job& job = grant.job;
    v1::Lease& lease = *response_->mutable_lease();
    lease.set_job(FormatJobName(job.key.tenant, job.key.id));
    lease.set_job_uid(job.uid);
    lease.set_epoch(job.epoch);
    *lease.mutable_ttl() = ToProto(grant.ttl);
    *lease.mutable_spec() = job.spec;
    lease.set_spec_digest(job.spec_digest);
    lease.set_traceparent(job.traceparent);
    lease.set_output_uri(context_->artifacts->OutputUri(job.key.tenant, job.uid, job.epoch));
    lease.set_checkpoint_uri(
        context_->artifacts->CheckpointUri(job.key.tenant, job.uid, job.epoch));
    if (grant.resume) *lease.mutable_resume() = *grant.resume;
    lease.set_blob_uri(context_->blobs->Uri(job.key.tenant));
    for (const std::string& root : context_->sources->RootsOf(job.key.tenant)) {
      lease.add_local_roots(root);
    }
  }

  v1::AcquireJobResponse* const response_;
  const AcquireRequest acquire_;
  const MonotonicTime deadline_;
  bool subscribed_ = false;
};

}  // namespace

grpc::ServerUnaryReactor* StartAcquire(const ServiceContext* context,
                                       grpc::CallbackServerContext* call,
                                       const v1::AcquireJobRequest& request,
                                       v1::AcquireJobResponse* response) {
  return new AcquireReactor(context, call, request, response);
}

}  // namespace quantry::server
