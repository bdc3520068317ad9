#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/doubling_wait.h"
#include "quantry/v1/worker_service.pb.h"

namespace grpc {
class ChannelCredentials;
}

namespace quantry::agent {

// Timing the server asks for at registration.
struct LeaseTiming {
  std::chrono::milliseconds ttl{30000};
  std::chrono::milliseconds heartbeat_interval{5000};
};

// Between calls that the server did not answer, jitter aside.
inline DoublingWait WaitForServer() {
  return {std::chrono::milliseconds(100), std::chrono::milliseconds(5000)};
}

// Asked before every repeat of a call; false = give up.
using KeepTrying = std::function<bool()>;

// The worker's side of WorkerService. Thread-safe. Every call has a deadline;
// calls that are idempotent by design are repeated with full jitter on UNAVAILABLE,
// DEADLINE_EXCEEDED, ABORTED, UNAUTHENTICATED, DISK_FULL and a RESOURCE_LIMIT that
// says when to come again. UNKNOWN_WORKER (the server forgot the session) registers
// again and repeats the call once, unseen by the caller. A server that says
// STORE_UNAVAILABLE for half a lease may be one of several that is cut off alone: the
// next calls go over a new connection, which a load balancer leads to one that is ready.
// Errors carry the server's reason and details (common/errors.h).
class WorkerClient {
 public:
  // `address` is host:port, `credentials` null for a plain connection.
  // Connects lazily.
  WorkerClient(const std::string& address, v1::WorkerInfo info,
               std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr);
  ~WorkerClient();

  // Repeats until the server answers or `stop` is requested.
  absl::Status Register(std::stop_token stop);
  LeaseTiming timing() const;
  const v1::WorkerInfo& info() const { return info_; }

  // One long poll; `stop` cancels it. The caller repeats with the same
  // acquire_id until it has an answer.
  absl::StatusOr<v1::AcquireJobResponse> Acquire(const std::string& acquire_id,
                                                 std::chrono::milliseconds wait,
                                                 std::stop_token stop);
  // One try.
  absl::StatusOr<v1::HeartbeatResponse> Heartbeat(v1::HeartbeatRequest request,
                                                  std::chrono::milliseconds deadline);
  absl::Status CommitCheckpoint(v1::CommitCheckpointRequest request, const KeepTrying& keep_trying);
  absl::Status Complete(v1::CompleteJobRequest request, const KeepTrying& keep_trying);
  absl::StatusOr<v1::FailJobResponse> Fail(v1::FailJobRequest request,
                                           const KeepTrying& keep_trying);
  absl::Status Release(v1::ReleaseJobRequest request, const KeepTrying& keep_trying);

 private:
  struct Connection;
  template <typename Response, typename Request, typename Method>
  absl::StatusOr<Response> Call(Method method, Request request, std::chrono::milliseconds deadline,
                                std::stop_token stop = {});
  template <typename Response, typename Request, typename Method>
  absl::StatusOr<Response> CallUntilAnswered(Method method, const Request& request,
                                             const KeepTrying& keep_trying);
  absl::Status RegisterOnce(std::stop_token stop);
  // One call over the connection of now; `use` gets the stub.
  template <typename Use>
  absl::Status Ask(std::stop_token stop, std::chrono::milliseconds deadline, const Use& use);
  std::shared_ptr<Connection> Connect() const;
  void Reconsider(const absl::Status& status);
  std::string session() const;

  const std::string address_;
  const v1::WorkerInfo info_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  mutable std::mutex mutex_;
  std::shared_ptr<Connection> connection_;
  std::optional<std::chrono::steady_clock::time_point> store_away_since_;
  std::string session_;
  LeaseTiming timing_;
};

}  // namespace quantry::agent
