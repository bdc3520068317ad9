// ArtifactService of the tenant port. Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "server/rpc/service_context.h"

namespace quantry::server {

// `context` must outlive the service.
std::unique_ptr<grpc::Service> NewArtifactService(const ServiceContext* context);

}  // namespace quantry::server
