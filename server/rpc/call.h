// What every RPC goes through, and nothing else may: start and end counters,
// the deadline, the limit on queued work, the error's way onto the wire, a log
// line for faults. Unary handlers are functions run by RpcRuntime::Unary;
// streams hold a Call for their whole life.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "common/clock.h"
#include "server/metrics/server_metrics.h"
#include "server/rpc/executor.h"

namespace quantry::server {

// A unary call without a deadline of its own gets this one.
inline constexpr auto kDefaultUnaryDeadline = std::chrono::seconds(10);

// With the google.rpc.Status in grpc-status-details-bin.
grpc::Status ToGrpcStatus(const absl::Status& status);

// One RPC from start to end. End() exactly once; thread-safe otherwise.
class Call {
 public:
  Call(std::string_view method, ServerMetrics* metrics);
  // Counts and logs; returns what goes to Finish.
  grpc::Status End(const absl::Status& status);
  const std::string& method() const { return method_; }

 private:
  const std::string method_;
  ServerMetrics* const metrics_;
  const MonotonicTime start_;
};

// Shared by all services of a process. Everything pointed at outlives it.
struct RpcRuntime {
  const Clock* clock;
  ServerMetrics* metrics;
  Executor* tenant;   // short calls of tenants
  Executor* worker;   // calls of workers: never behind a tenant's
  Executor* streams;  // steps of streams
  Executor* slow;     // calls that start a process
  Timer* timer;
  std::atomic<bool> draining{false};
  StreamRegistry open_streams = {};

  // Long calls end with UNAVAILABLE from now on; short ones still work.
  void Drain() {
    draining = true;
    open_streams.KickAll();
  }

  // Runs `body` on `executor` and finishes the call with what it returns.
  // `method` is the full name, "/quantry.v1.AdminService/ListWorkers".
  template <class Request, class Response>
  grpc::ServerUnaryReactor* Unary(Executor* executor, std::string_view method,
                                  grpc::CallbackServerContext* context, const Request* request,
                                  Response* response,
                                  std::function<absl::Status(const Request&, Response*)> body) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    auto call = std::make_shared<Call>(method, metrics);
    const auto deadline = Deadline(*context);
    const bool accepted = executor->Submit([=, this, body = std::move(body)] {
      absl::Status status = CheckStart(*context, deadline);
      if (status.ok()) status = body(*request, response);
      reactor->Finish(call->End(status));
    });
    if (!accepted) reactor->Finish(call->End(Overloaded()));
    return reactor;
  }

  // For rpcs of later versions.
  template <class Request, class Response>
  grpc::ServerUnaryReactor* Unimplemented(std::string_view method,
                                          grpc::CallbackServerContext* context, const Request*,
                                          Response*, std::string_view instead) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(Call(method, metrics).End(UnimplementedError(method, instead)));
    return reactor;
  }

  static MonotonicTime Deadline(const grpc::CallbackServerContext& context);
  static absl::Status Overloaded();
  static absl::Status Draining();
  static absl::Status UnimplementedError(std::string_view method, std::string_view instead);

 private:
  // Nobody waits for the answer any more: do not start.
  static absl::Status CheckStart(const grpc::CallbackServerContext& context,
                                 MonotonicTime deadline);
};

}  // namespace quantry::server
