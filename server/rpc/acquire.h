// AcquireJob: the long poll for work.
#pragma once

#include <grpcpp/grpcpp.h>

#include "quantry/v1/worker_service.pb.h"
#include "server/rpc/service_context.h"

namespace quantry::server {

// Longest wait, whatever the worker asks for. Clients use a deadline of 30 s.
inline constexpr auto kMaxAcquireWait = std::chrono::seconds(20);

// Answers at once when there is work, else when some comes, the wait is over
// or the server drains. The reactor owns itself.
grpc::ServerUnaryReactor* StartAcquire(const ServiceContext* context,
                                       grpc::CallbackServerContext* call,
                                       const v1::AcquireJobRequest& request,
                                       v1::AcquireJobResponse* response);

}  // namespace quantry::server
