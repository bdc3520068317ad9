#include "worker/agent/testing/fake_worker_service.h"

#include <chrono>

#include "common/errors.h"
#include "google/protobuf/util/time_util.h"
#include "google/rpc/status.pb.h"

namespace quantry::agent {
namespace {

using google::protobuf::util::TimeUtil;

grpc::Status ToGrpc(const absl::Status& status) {
  const google::rpc::Status details = ToRpcStatus(status);
  return grpc::Status(static_cast<grpc::StatusCode>(details.code()), details.message(),
                      details.SerializeAsString());
}

}  // namespace

FakeWorkerService::FakeWorkerService() {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
}

FakeWorkerService::~FakeWorkerService() {
  With([this](State&) { shutdown_ = true; });
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
}

void FakeWorkerService::With(const std::function<void(State&)>& action) {
  const std::lock_guard lock(mutex_);
  action(state_);
  changed_.notify_all();
}

bool FakeWorkerService::WaitFor(const std::function<bool(const State&)>& done) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::seconds(30), [&] { return done(state_); });
}

grpc::Status FakeWorkerService::CheckSession(const std::string& session) {
  if (state_.store_away) return ToGrpc(MakeError(Reason::kStoreUnavailable, "no database"));
  if (session == "session-" + std::to_string(state_.registrations)) return grpc::Status::OK;
  return ToGrpc(MakeError(Reason::kUnknownWorker, "register again"));
}

grpc::Status FakeWorkerService::CheckLease(const std::string& session, const std::string& job,
                                           std::int64_t epoch) {
  if (auto status = CheckSession(session); !status.ok()) return status;
  if (state_.epochs[job] == epoch && state_.orders[job] != v1::DIRECTIVE_LOST) {
    return grpc::Status::OK;
  }
  return ToGrpc(MakeError(Reason::kLeaseLost, "another epoch runs"));
}

grpc::Status FakeWorkerService::CheckEnd(const std::string& session, const std::string& job,
                                         std::int64_t epoch) {
  if (auto status = CheckLease(session, job, epoch); !status.ok()) return status;
  if (state_.end_refusals == 0) return grpc::Status::OK;
  --state_.end_refusals;
  ++state_.ends_refused;
  return ToGrpc(state_.end_refusal);
}

void FakeWorkerService::Keep(const std::string& job, std::int64_t offset,
                             const google::protobuf::RepeatedPtrField<v1::JobEvent>& events) {
  std::int64_t& next = state_.next_event[job];
  for (const v1::JobEvent& event : events) {
    if (offset == next) {
      state_.events.push_back(event);
      ++next;
    } else {
      ++state_.repeated_events;
    }
    ++offset;
  }
}

grpc::Status FakeWorkerService::RegisterWorker(grpc::ServerContext*,
                                               const v1::RegisterWorkerRequest*,
                                               v1::RegisterWorkerResponse* response) {
  With([&](State& state) {
    response->set_session("session-" + std::to_string(++state.registrations));
    *response->mutable_lease_ttl() = TimeUtil::MillisecondsToDuration(state.ttl_ms);
    *response->mutable_heartbeat_interval() =
        TimeUtil::MillisecondsToDuration(state.heartbeat_interval_ms);
  });
  return grpc::Status::OK;
}

grpc::Status FakeWorkerService::AcquireJob(grpc::ServerContext* context,
                                           const v1::AcquireJobRequest* request,
                                           v1::AcquireJobResponse* response) {
  std::unique_lock lock(mutex_);
  state_.connections.insert(context->peer());
  if (auto status = CheckSession(request->session()); !status.ok()) return status;
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::milliseconds(TimeUtil::DurationToMilliseconds(request->wait()));
  const auto again = state_.granted.find(request->acquire_id());
  if (again != state_.granted.end()) {
    *response->mutable_lease() = again->second;
    return grpc::Status::OK;
  }
  while (state_.queue.empty() && !shutdown_ && !context->IsCancelled()) {
    if (std::chrono::steady_clock::now() >= end) return grpc::Status::OK;
    changed_.wait_for(lock, std::chrono::milliseconds(20));
  }
  if (state_.queue.empty()) return grpc::Status::OK;
  v1::Lease lease = state_.queue.front();
  state_.queue.pop_front();
  *lease.mutable_ttl() = TimeUtil::MillisecondsToDuration(state_.ttl_ms);
  state_.granted[request->acquire_id()] = lease;
  state_.epochs[lease.job()] = lease.epoch();
  state_.next_event[lease.job()] = 0;
  *response->mutable_lease() = lease;
  changed_.notify_all();
  return grpc::Status::OK;
}

grpc::Status FakeWorkerService::Heartbeat(grpc::ServerContext* context,
                                          const v1::HeartbeatRequest* request,
                                          v1::HeartbeatResponse* response) {
  const std::lock_guard lock(mutex_);
  if (state_.connections.insert(context->peer()).second) changed_.notify_all();
  if (state_.silent) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "silent");
  if (state_.forget_session_once) {
    state_.forget_session_once = false;
    return ToGrpc(MakeError(Reason::kUnknownWorker, "register again"));
  }
  if (auto status = CheckSession(request->session()); !status.ok()) return status;
  ++state_.beats;
  state_.refusal = request->refusal();
  response->set_worker(state_.worker_order);
  for (const v1::JobBeat& beat : request->jobs()) {
    v1::JobDirective& directive = *response->add_jobs();
    directive.set_job(beat.job());
    directive.set_epoch(beat.epoch());
    const auto order = state_.orders.find(beat.job());
    directive.set_directive(order == state_.orders.end() ? v1::DIRECTIVE_CONTINUE : order->second);
    if (state_.epochs[beat.job()] != beat.epoch()) directive.set_directive(v1::DIRECTIVE_LOST);
    *directive.mutable_ttl() = TimeUtil::MillisecondsToDuration(state_.ttl_ms);
    if (directive.directive() == v1::DIRECTIVE_LOST) continue;
    Keep(beat.job(), beat.event_offset(), beat.events());
    state_.last_progress = beat.progress();
    directive.set_next_event_offset(state_.next_event[beat.job()]);
  }
  changed_.notify_all();
  if (state_.lose_replies > 0) {
    --state_.lose_replies;
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the reply got lost");
  }
  return grpc::Status::OK;
}

grpc::Status FakeWorkerService::CommitCheckpoint(grpc::ServerContext*,
                                                 const v1::CommitCheckpointRequest* request,
                                                 v1::CommitCheckpointResponse*) {
  const std::lock_guard lock(mutex_);
  auto status = CheckLease(request->session(), request->job(), request->epoch());
  if (status.ok()) {
    Keep(request->job(), request->event_offset(), request->events());
    state_.checkpoints.push_back(*request);
    v1::JobEvent event;
    event.set_epoch(request->epoch());
    event.mutable_checkpoint()->set_blocks_done(request->checkpoint().blocks_done());
    state_.events.push_back(event);  // the server's own
  }
  changed_.notify_all();
  return status;
}

grpc::Status FakeWorkerService::CompleteJob(grpc::ServerContext*,
                                            const v1::CompleteJobRequest* request,
                                            v1::CompleteJobResponse*) {
  const std::lock_guard lock(mutex_);
  auto status = CheckEnd(request->session(), request->job(), request->epoch());
  if (status.ok()) {
    Keep(request->job(), request->event_offset(), request->events());
    state_.completed.push_back(*request);
  }
  changed_.notify_all();
  if (status.ok() && state_.ended_commits > 0) {
    --state_.ended_commits;
    return grpc::Status(grpc::StatusCode::CANCELLED, "CANCELLED");
  }
  return status;
}

grpc::Status FakeWorkerService::FailJob(grpc::ServerContext*, const v1::FailJobRequest* request,
                                        v1::FailJobResponse* response) {
  const std::lock_guard lock(mutex_);
  auto status = CheckEnd(request->session(), request->job(), request->epoch());
  if (status.ok()) {
    Keep(request->job(), request->event_offset(), request->events());
    state_.failed.push_back(*request);
    response->set_state(request->cancelled()   ? v1::JOB_STATE_CANCELLED
                        : request->retryable() ? v1::JOB_STATE_QUEUED
                                               : v1::JOB_STATE_FAILED);
  }
  changed_.notify_all();
  return status;
}

grpc::Status FakeWorkerService::ReleaseJob(grpc::ServerContext*,
                                           const v1::ReleaseJobRequest* request,
                                           v1::ReleaseJobResponse*) {
  const std::lock_guard lock(mutex_);
  auto status = CheckEnd(request->session(), request->job(), request->epoch());
  if (status.ok()) state_.released.push_back(*request);
  changed_.notify_all();
  return status;
}

}  // namespace quantry::agent
