#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "grpcpp/grpcpp.h"
#include "quantry/v1/worker_service.grpc.pb.h"

namespace quantry::agent {

// A server for tests of the agent, on a free loopback port: hands out the
// leases it was given, keeps the events like a store would, and misbehaves on
// demand. Thread-safe. The test looks at `state` under WaitFor or With.
class FakeWorkerService : public v1::WorkerService::Service {
 public:
  struct State {
    std::deque<v1::Lease> queue;
    std::map<std::string, v1::Lease> granted;     // by acquire_id
    std::map<std::string, std::int64_t> epochs;   // current epoch by job
    std::map<std::string, v1::Directive> orders;  // by job; default CONTINUE
    v1::WorkerDirective worker_order = v1::WORKER_DIRECTIVE_NONE;
    std::vector<v1::JobEvent> events;  // of the current attempts, in order
    std::map<std::string, std::int64_t> next_event;
    v1::JobProgress last_progress;
    std::string refusal;  // of the last heartbeat
    int registrations = 0;
    int beats = 0;
    int repeated_events = 0;   // came again with numbers already known
    int lose_replies = 0;      // heartbeats processed but not answered
    int ended_commits = 0;     // commits that count, ended as by a server that stops
    bool silent = false;       // heartbeats neither processed nor answered
    absl::Status end_refusal;  // of calls that end an attempt
    int end_refusals = 0;      // so many of them are left
    int ends_refused = 0;
    bool forget_session_once = false;
    bool store_away = false;            // every call of an attempt is answered STORE_UNAVAILABLE
    std::set<std::string> connections;  // from where calls came
    std::vector<v1::CommitCheckpointRequest> checkpoints;
    std::vector<v1::CompleteJobRequest> completed;
    std::vector<v1::FailJobRequest> failed;
    std::vector<v1::ReleaseJobRequest> released;
    std::int64_t ttl_ms = 30000;
    std::int64_t heartbeat_interval_ms = 1000;

    bool AnyEnd() const { return !completed.empty() || !failed.empty() || !released.empty(); }
  };

  FakeWorkerService();
  ~FakeWorkerService() override;

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  void With(const std::function<void(State&)>& action);
  // Waits up to 30 s for `done`; false when it did not come true.
  bool WaitFor(const std::function<bool(const State&)>& done);

  grpc::Status RegisterWorker(grpc::ServerContext*, const v1::RegisterWorkerRequest*,
                              v1::RegisterWorkerResponse*) override;
  grpc::Status AcquireJob(grpc::ServerContext*, const v1::AcquireJobRequest*,
                          v1::AcquireJobResponse*) override;
  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest*,
                         v1::HeartbeatResponse*) override;
  grpc::Status CommitCheckpoint(grpc::ServerContext*, const v1::CommitCheckpointRequest*,
                                v1::CommitCheckpointResponse*) override;
  grpc::Status CompleteJob(grpc::ServerContext*, const v1::CompleteJobRequest*,
                           v1::CompleteJobResponse*) override;
  grpc::Status FailJob(grpc::ServerContext*, const v1::FailJobRequest*,
                       v1::FailJobResponse*) override;
  grpc::Status ReleaseJob(grpc::ServerContext*, const v1::ReleaseJobRequest*,
                          v1::ReleaseJobResponse*) override;

 private:
  // All need mutex_.
  grpc::Status CheckSession(const std::string& session);
  grpc::Status CheckLease(const std::string& session, const std::string& job, std::int64_t epoch);
  // The same for a call that ends an attempt, which may be refused.
  grpc::Status CheckEnd(const std::string& session, const std::string& job, std::int64_t epoch);
  void Keep(const std::string& job, std::int64_t offset,
            const google::protobuf::RepeatedPtrField<v1::JobEvent>& events);

  std::mutex mutex_;
  std::condition_variable changed_;
  State state_;
  bool shutdown_ = false;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace quantry::agent
