// What every RPC goes through, and nothing else may: who calls and whether he
// may, start and end counters, the deadline, the limit on queued work, the
// error's way onto the wire, a log line for faults and one for changes. Unary
// handlers are functions run by RpcRuntime::Unary; streams hold a Call for
// their whole life.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <semaphore>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/log.h"
#include "google/protobuf/message.h"
#include "server/auth/authenticator.h"
#include "server/metrics/server_metrics.h"
#include "server/rpc/executor.h"
#include "server/rpc/permissions.h"
#include "server/rpc/shared_job.h"

namespace quantry::server {

// A unary call without a deadline of its own gets this one.
inline constexpr auto kDefaultUnaryDeadline = std::chrono::seconds(10);
inline constexpr int kTenantThreads = 16;  // of RpcRuntime::tenant

// With the google.rpc.Status in grpc-status-details-bin.
grpc::Status ToGrpcStatus(const absl::Status& status);

// How many streams, or calls of one kind, each principal or each tenant has open. Thread-safe.
class StreamCounts {
 public:
  // False when `name` has `limit` already; else one more.
  bool Add(const std::string& name, std::int64_t limit);
  void Remove(const std::string& name);

 private:
  std::mutex mutex_;
  std::map<std::string, std::int64_t> counts_;  // guarded by mutex_; no zeros
};

// What one principal may have at a server.
struct PlaceLimit {
  std::int64_t most;
  std::string_view what;    // "watches open"
  std::string_view advice;  // for who has so many already
  Duration retry_after;
};

// A place among those of a principal, who is nobody without authentication.
class CountedPlace {
 public:
  explicit CountedPlace(StreamCounts* counts) : counts_(counts) {}
  CountedPlace(const CountedPlace&) = delete;
  CountedPlace& operator=(const CountedPlace&) = delete;
  ~CountedPlace() { GiveBack(); }

  // RESOURCE_EXHAUSTED RESOURCE_LIMIT when the principal has limit.most already.
  absl::Status Take(const std::optional<Principal>& principal, const PlaceLimit& limit);
  void GiveBack();

 private:
  StreamCounts* const counts_;
  std::optional<std::string> counted_as_;  // what is counted: a principal may get another one
};

struct RpcRuntime;

// One RPC from start to end: Admit first, End exactly once and last; one
// thread at a time.
class Call {
 public:
  // `method` is the full name.
  Call(std::string_view method, const RpcRuntime* runtime, grpc::CallbackServerContext* context);

  // Whether the caller may do this: UNAUTHENTICATED, PERMISSION_DENIED, or
  // NOT_FOUND for another tenant's name. `request` is null when it has not come
  // yet; AdmitName then takes it.
  absl::Status Admit(const google::protobuf::Message* request);
  absl::Status AdmitName(const google::protobuf::Message& request);

  // For calls that stay open: UNAUTHENTICATED once the credential has ended or
  // was withdrawn. Cheap while nothing changed.
  absl::Status Standing();
  // How long the credential still lasts, a day at most; unset = for ever.
  std::optional<Duration> credential_left() const;
  // Unset without authentication, and of strangers.
  const std::optional<Principal>& principal() const { return principal_; }

  // OK while the caller waits for the answer; DEADLINE_EXCEEDED once his own
  // deadline has passed, CANCELLED once he has left. For bodies that take long.
  absl::Status Awaited() const;

  // What the audit log is to name: what this answer tells of, if it made something.
  void Made(const google::protobuf::Message& response);

  // Counts and logs; returns what goes to Finish.
  grpc::Status End(const absl::Status& status);
  const std::string& method() const { return method_; }
  // The caller's W3C traceparent; "" when it sent none or a bad one.
  const std::string& traceparent() const { return traceparent_; }
  const std::string& trace_id() const { return trace_id_; }

 private:
  absl::Status Authorize(const google::protobuf::Message* request);
  void Audit(const absl::Status& status) const;

  const std::string method_;
  const RpcRuntime* const runtime_;
  const grpc::CallbackServerContext* const context_;  // lives until the call is finished
  const std::optional<MonotonicTime> deadline_;       // the caller's own
  const std::string traceparent_;
  const std::string trace_id_;
  const MonotonicTime start_;
  const Permission* const permission_;
  Presented presented_;
  std::uint64_t generation_ = 0;  // of the authenticator, when it was last asked
  std::optional<Principal> principal_;
  std::string resource_;
  std::string told_;    // of the request, for the audit log
  bool trial_ = false;  // validate_only: changes nothing
};

// What a unary rpc does.
template <class Request, class Response>
using UnaryBody = std::function<absl::Status(const Request&, Response*, const Call&)>;

// Shared by all services of a process. Everything pointed at outlives it.
struct RpcRuntime {
  // By it credentials begin and end: that of who issued them. A job store's clock may be another
  // one, or have stayed behind a step of this machine's.
  const Clock* wall_clock;
  ServerMetrics* metrics;
  Executor* tenant;   // short calls of tenants
  Executor* worker;   // calls of workers: never behind a tenant's
  Executor* streams;  // steps of watches
  // What waits for the object store has threads of its own: one that does not
  // answer must not stop what never asks it. Work of tenants, and of workers
  // that complete jobs.
  Executor* artifacts;
  // Begins and ends of uploads: what is there is read again, and the whole of it goes to the
  // store. Nothing else waits for them.
  Executor* uploads;
  Executor* commits;
  Executor* slow;  // calls that start a process
  Timer* timer;
  // null: nobody is asked who he is, and everybody may do everything.
  const Authenticator* auth = nullptr;
  std::atomic<bool> draining{false};
  std::stop_source stop = {};  // of calls that take minutes and can be left off
  // Calls on `tenant` that may wait for the object store all the same: half of its threads.
  std::counting_semaphore<> store_waits{kTenantThreads / 2};
  StreamRegistry open_streams = {};
  StreamCounts watches = {};  // of principals
  StreamCounts tenant_watches = {};
  StreamCounts artifact_streams = {};  // of principals
  StreamCounts blob_finds = {};        // of principals
  SharedJobs watched_jobs = {};

  // Long calls end with UNAVAILABLE from now on; short ones still work.
  void Drain() {
    draining = true;
    stop.request_stop();
    open_streams.KickAll();
  }

  // Runs `body` on `executor` and finishes the call with what it returns. What
  // the body logs carries the caller's trace.
  // `method` is the full name, "/quantry.v1.AdminService/ListWorkers".
  template <class Request, class Response>
  grpc::ServerUnaryReactor* Unary(Executor* executor, std::string_view method,
                                  grpc::CallbackServerContext* context, const Request* request,
                                  Response* response, UnaryBody<Request, Response> body) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    auto call = std::make_shared<Call>(method, this, context);
    // Before it may queue: strangers take no turn.
    if (const absl::Status admitted = call->Admit(request); !admitted.ok()) {
      reactor->Finish(call->End(admitted));
      return reactor;
    }
    const auto deadline = Deadline(*context);
    const bool accepted = executor->Submit([=, this, body = std::move(body)] {
      absl::Status status = CheckStart(*context, deadline);
      const log::TraceScope trace(call->trace_id());
      if (status.ok()) status = body(*request, response, *call);
      if (status.ok()) call->Made(*response);
      reactor->Finish(call->End(status));
    });
    if (!accepted) reactor->Finish(call->End(Overloaded()));
    return reactor;
  }

  // For rpcs of later versions.
  template <class Request, class Response>
  grpc::ServerUnaryReactor* Unimplemented(std::string_view method,
                                          grpc::CallbackServerContext* context,
                                          const Request* request, Response*,
                                          std::string_view instead) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    Call call(method, this, context);
    const absl::Status admitted = call.Admit(request);
    reactor->Finish(call.End(admitted.ok() ? UnimplementedError(method, instead) : admitted));
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
