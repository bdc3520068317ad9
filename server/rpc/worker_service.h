// WorkerService (worker port) and AdminService (tenant port when embedded).
// Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "server/rpc/service_context.h"

namespace quantry::server {

// `context` must outlive the services.
std::unique_ptr<grpc::Service> NewWorkerService(const ServiceContext* context);
std::unique_ptr<grpc::Service> NewAdminService(const ServiceContext* context);

}  // namespace quantry::server
