#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/log.h"
#include "quantry/v1/admin_service.grpc.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/service_base.h"
#include "server/rpc/validation.h"
#include "server/rpc/worker_service.h"

namespace quantry::server {
namespace {

using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

constexpr char kWorkers[] = "workers";  // scope of its page tokens
constexpr auto kLeastGrace = std::chrono::seconds(60);
// More would pass what times of files can tell.
constexpr auto kMostGrace = std::chrono::hours(24) * 36525;

class Service : public v1::AdminService::CallbackService, private ServiceBase<Service> {
  friend ServiceBase;

 public:
  explicit Service(const ServiceContext* context)
      : ServiceBase(context, "AdminService", context->runtime->tenant) {}

  ServerUnaryReactor* ListWorkers(CallbackServerContext* call,
                                  const v1::ListWorkersRequest* request,
                                  v1::ListWorkersResponse* response) override {
    return Run("ListWorkers", call, request, response, &Service::Workers);
  }
  ServerUnaryReactor* DrainWorker(CallbackServerContext* call,
                                  const v1::DrainWorkerRequest* request,
                                  v1::WorkerStatus* response) override {
    return Run("DrainWorker", call, request, response, &Service::Drain);
  }
  ServerUnaryReactor* GetQueueStats(CallbackServerContext* call,
                                    const v1::GetQueueStatsRequest* request,
                                    v1::QueueStats* response) override {
    return Run("GetQueueStats", call, request, response, &Service::Stats);
  }
  ServerUnaryReactor* PauseQueue(CallbackServerContext* call, const v1::PauseQueueRequest* request,
                                 v1::PauseQueueResponse* response) override {
    return Run("PauseQueue", call, request, response, &Service::Pause);
  }
  ServerUnaryReactor* ResumeQueue(CallbackServerContext* call,
                                  const v1::ResumeQueueRequest* request,
                                  v1::ResumeQueueResponse* response) override {
    return Run("ResumeQueue", call, request, response, &Service::Resume);
  }
  ServerUnaryReactor* SetQuota(CallbackServerContext* call, const v1::SetQuotaRequest* request,
                               v1::SetQuotaResponse* response) override {
    return RunOn(runtime_->artifacts, "SetQuota", call, request, response, &Service::Quota);
  }
  ServerUnaryReactor* GetQuota(CallbackServerContext* call, const v1::GetQuotaRequest* request,
                               v1::GetQuotaResponse* response) override {
    return RunOn(runtime_->artifacts, "GetQuota", call, request, response, &Service::ReadQuota);
  }
  ServerUnaryReactor* CollectGarbage(CallbackServerContext* call,
                                     const v1::CollectGarbageRequest* request,
                                     v1::CollectGarbageResponse* response) override {
    return RunOn(runtime_->slow, "CollectGarbage", call, request, response, &Service::Collect);
  }

 private:
  absl::Status Workers(const v1::ListWorkersRequest& request, v1::ListWorkersResponse* response) {
    auto limit = PageSize(request.page_size(), kMaxPageSize);
    if (!limit.ok()) return limit.status();
    const PageTokens& tokens = *context_->page_tokens;
    std::string after;
    if (!request.page_token().empty()) {
      auto id = tokens.DecodeId(kWorkers, request.page_token());
      if (!id.ok()) return id.status();
      after = *std::move(id);
    }
    // One more than the page holds: whether there is another page.
    auto workers = context_->store->ListWorkers(after, *limit + 1, context_->clock->Now());
    if (!workers.ok()) return workers.status();
    std::size_t bytes = 0;
    for (const Worker& worker : *workers) {
      v1::WorkerStatus proto = ToProto(worker);
      bytes += proto.ByteSizeLong();
      const int taken = response->workers_size();
      if (taken == *limit || (taken > 0 && bytes > kMaxPageBytes)) {
        const std::string& last = response->workers(taken - 1).worker().worker_id();
        response->set_next_page_token(tokens.EncodeId(kWorkers, last));
        break;
      }
      *response->add_workers() = std::move(proto);
    }
    return absl::OkStatus();
  }

  absl::Status Drain(const v1::DrainWorkerRequest& request, v1::WorkerStatus* response) {
    if (request.worker_id().empty()) {
      return MakeError(Reason::kInvalidArgument, "worker_id: wanted one, see ListWorkers; got ''");
    }
    auto worker = context_->store->DrainWorker(request.worker_id(), request.terminate(),
                                               context_->clock->Now());
    if (!worker.ok()) return worker.status();
    *response = ToProto(*worker);
    return absl::OkStatus();
  }

  absl::Status Pause(const v1::PauseQueueRequest& request, v1::PauseQueueResponse*) {
    constexpr size_t kMaxReasonBytes = 1024;
    if (request.reason().size() > kMaxReasonBytes) {
      return MakeError(Reason::kInvalidArgument, "reason: wanted at most 1024 bytes, got more");
    }
    log::Warning("queue paused", {{"reason", request.reason()}});
    return context_->store->PauseQueue(request.reason(), context_->clock->Now());
  }

  absl::Status Resume(const v1::ResumeQueueRequest&, v1::ResumeQueueResponse*) {
    log::Info("queue resumed");
    return context_->store->ResumeQueue();
  }

  absl::Status Quota(const v1::SetQuotaRequest& request, v1::SetQuotaResponse* response) {
    auto tenant = ParseTenantName(request.parent());
    if (!tenant.ok()) return tenant.status();
    const TenantQuota quota{.tenant = *tenant,
                            .max_queued = request.max_queued(),
                            .max_running = request.max_running(),
                            .max_stored_bytes = request.max_stored_bytes(),
                            .max_submits_per_minute = request.max_submits_per_minute(),
                            .max_watches = request.max_watches()};
    for (const std::int64_t limit : {quota.max_queued, quota.max_running, quota.max_stored_bytes,
                                     quota.max_submits_per_minute, quota.max_watches}) {
      if (limit >= 0) continue;
      return MakeError(Reason::kInvalidArgument,
                       absl::StrCat("wanted 0 (no limit) or more for each limit, got ", limit));
    }
    return Tell(context_->store->SetQuota(quota), response);
  }

  absl::Status ReadQuota(const v1::GetQuotaRequest& request, v1::GetQuotaResponse* response) {
    auto tenant = ParseTenantName(request.parent());
    if (!tenant.ok()) return tenant.status();
    const auto usage = context_->store->Usage(*tenant);
    if (absl::Status told = Tell(usage, response); !told.ok()) return told;
    response->set_max_queued(usage->quota.max_queued);
    response->set_max_running(usage->quota.max_running);
    response->set_max_stored_bytes(usage->quota.max_stored_bytes);
    response->set_max_submits_per_minute(usage->quota.max_submits_per_minute);
    response->set_max_watches(usage->quota.max_watches);
    return absl::OkStatus();
  }

  // What a tenant uses now.
  template <class Response>
  absl::Status Tell(const absl::StatusOr<TenantUsage>& usage, Response* response) {
    if (!usage.ok()) return usage.status();
    const auto uploads = context_->blobs->StoredBytes(usage->quota.tenant);
    if (!uploads.ok()) return uploads.status();
    response->set_queued(usage->queued);
    response->set_running(usage->running);
    response->set_stored_bytes(usage->artifact_bytes + *uploads);
    return absl::OkStatus();
  }

  absl::Status Stats(const v1::GetQueueStatsRequest&, v1::QueueStats* response) {
    auto stats = context_->store->Stats(context_->clock->Now());
    if (!stats.ok()) return stats.status();
    *response = ToProto(*stats);
    return absl::OkStatus();
  }

  static absl::Status Incomplete(const GarbageReport& report) {
    absl::Status status(report.first_failure.code(),
                        absl::StrCat(report.objects, " objects were removed, ", report.failures,
                                     " prefixes or uploads could not be: ",
                                     std::string(report.first_failure.message())));
    report.first_failure.ForEachPayload([&](absl::string_view type, const absl::Cord& details) {
      status.SetPayload(type, details);
    });
    return status;
  }

  absl::Status Collect(const v1::CollectGarbageRequest& request,
                       v1::CollectGarbageResponse* response) {
    GarbageOptions options;
    options.dry_run = request.dry_run();
    if (request.has_grace()) options.grace = FromProto(request.grace());
    if (options.grace < kLeastGrace || options.grace > kMostGrace) {
      return MakeError(
          Reason::kInvalidArgument,
          "grace: wanted at least 60 s, as an upload comes before its job, and at most "
          "100 years");
    }
    const auto report = context_->garbage->Collect(options, runtime_->stop.get_token());
    if (absl::IsCancelled(report.status())) return RpcRuntime::Draining();
    if (!report.ok()) return report.status();
    if (report->failures > 0) return Incomplete(*report);
    response->set_objects(report->objects);
    response->set_bytes(report->bytes);
    response->set_attempts(report->attempts);
    response->set_blobs(report->blobs);
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<grpc::Service> NewAdminService(const ServiceContext* context) {
  return std::make_unique<Service>(context);
}

}  // namespace quantry::server
