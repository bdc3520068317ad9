#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/log.h"
#include "quantry/v1/admin_service.grpc.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/service_base.h"
#include "server/rpc/worker_service.h"

namespace quantry::server {
namespace {

using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

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
    return Unimplemented("SetQuota", call, request, response, "tenants have no quotas yet");
  }
  ServerUnaryReactor* CollectGarbage(CallbackServerContext* call,
                                     const v1::CollectGarbageRequest* request,
                                     v1::CollectGarbageResponse* response) override {
    return Unimplemented("CollectGarbage", call, request, response,
                         "the server removes garbage of deleted jobs by itself");
  }

 private:
  absl::Status Workers(const v1::ListWorkersRequest&, v1::ListWorkersResponse* response) {
    auto workers = context_->store->ListWorkers(context_->clock->Now());
    if (!workers.ok()) return workers.status();
    for (const Worker& worker : *workers) *response->add_workers() = ToProto(worker);
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

  absl::Status Stats(const v1::GetQueueStatsRequest&, v1::QueueStats* response) {
    auto stats = context_->store->Stats(context_->clock->Now());
    if (!stats.ok()) return stats.status();
    *response = ToProto(*stats);
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<grpc::Service> NewAdminService(const ServiceContext* context) {
  return std::make_unique<Service>(context);
}

}  // namespace quantry::server
