#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "common/errors.h"
#include "common/ids.h"
#include "server/jobs/job_store.h"
#include "server/jobs/policy.h"

// What every implementation of JobStore must do. An implementation's test
// includes job_store_suite.h and instantiates it:
//   INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreSuite, Values(factory), FactoryName);
//   INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreTurns, Values(factory), FactoryName);
//   INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreTwins, Values(factory), FactoryName);
namespace quantry::server {

inline void PrintTo(JobState state, std::ostream* out) { *out << JobStateName(state); }

// One database, empty at first.
class StoreInstance {
 public:
  virtual ~StoreInstance() = default;
  virtual JobStore& store() = 0;
  // Closes it and opens it again: what a restart of the server sees.
  virtual void Reopen() = 0;
};

struct JobStoreFactory {
  std::string name;
  std::function<std::unique_ptr<StoreInstance>(const JobPolicy&)> make;
};

inline void PrintTo(const JobStoreFactory& factory, std::ostream* out) { *out << factory.name; }

inline std::string FactoryName(const testing::TestParamInfo<JobStoreFactory>& info) {
  return info.param.name;
}

// OK, or the reason, for readable expectations.
inline std::string Outcome(const absl::Status& status) {
  if (status.ok()) return "OK";
  std::string reason = ReasonOf(status);
  return reason.empty() ? status.ToString() : reason;
}
template <typename T>
std::string Outcome(const absl::StatusOr<T>& result) {
  return Outcome(result.status());
}

class JobStoreSuite : public testing::TestWithParam<JobStoreFactory> {
 protected:
  using Seconds = std::chrono::seconds;

  void SetUp() override {
    // No randomness in when a retry may start: 1 s at least, 2 s at most.
    policy_.backoff_cap = std::chrono::seconds(2);
    instance_ = GetParam().make(policy_);
  }
  void TearDown() override {
    if (instance_ != nullptr && !HasFatalFailure()) CheckInvariants();
  }

  JobStore& store() { return instance_->store(); }
  void Reopen() { instance_->Reopen(); }
  Time now() const { return now_; }
  // Sweeps on the way as the server does, so that no outage is seen.
  void Advance(Duration by) { now_ += by; }
  void AdvanceSweeping(Duration by) {
    for (Time end = now_ + by; now_ < end;) {
      now_ = std::min(end, now_ + Duration(Seconds(5)));
      Sweep();
    }
  }
  SweepReport Sweep() {
    auto report = store().Sweep(now_);
    EXPECT_EQ(Outcome(report), "OK");
    return report.value_or(SweepReport{});
  }

  static JobKey Key(const std::string& id) { return {"acme", id}; }

  SubmitRequest Request(const std::string& id, const std::string& method = "rtn") const {
    SubmitRequest request;
    request.key = Key(id);
    request.uid = NewUuid4();
    request.request_hash = "hash";
    request.spec_digest = "digest";
    request.spec.set_seed(7);
    if (method == "awq") request.spec.mutable_method()->mutable_awq();
    if (method == "rtn") request.spec.mutable_method()->mutable_rtn();
    return request;
  }
  Job Submit(const SubmitRequest& request) {
    auto result = store().Submit(request, now_);
    EXPECT_EQ(Outcome(result), "OK");
    return result.ok() ? result->job : Job{};
  }
  Job Submit(const std::string& id) { return Submit(Request(id)); }
  Job Get(const std::string& id) {
    auto job = store().Get(Key(id));
    EXPECT_EQ(Outcome(job), "OK") << id;
    return job.value_or(Job{});
  }
  JobState StateOf(const std::string& id) { return Get(id).state; }

  static v1::WorkerInfo Info(const std::string& worker_id) {
    v1::WorkerInfo info;
    info.set_worker_id(worker_id);
    info.set_incarnation("incarnation-of-" + worker_id);
    info.set_slots(2);
    for (const char* method : {"rtn", "awq"}) info.add_methods(method);
    return info;
  }
  // Returns the session.
  std::string Register(const v1::WorkerInfo& info) {
    std::string session = "session-" + std::to_string(++sessions_);
    EXPECT_EQ(Outcome(store().RegisterWorker(info, session, now_)), "OK");
    return session;
  }
  std::string Register(const std::string& worker_id) { return Register(Info(worker_id)); }

  std::optional<Grant> TryAcquire(const std::string& session, std::string acquire_id = "") {
    if (acquire_id.empty()) acquire_id = NewUuid4();
    auto grant = store().Acquire({session, acquire_id}, now_);
    EXPECT_EQ(Outcome(grant), "OK");
    return grant.ok() ? *grant : std::nullopt;
  }
  LeaseToken Acquire(const std::string& session) {
    auto grant = TryAcquire(session);
    EXPECT_TRUE(grant.has_value()) << "nothing to acquire";
    if (!grant) return {session, Key("none"), 0};
    return {session, grant->job.key, grant->job.epoch, grant->job.uid};
  }
  // Waits out the backoff first.
  LeaseToken AcquireAgain(const std::string& session) {
    Advance(policy_.backoff_cap);
    return Acquire(session);
  }

  static Beat BeatOf(const LeaseToken& lease, int64_t steps = 0) {
    Beat beat;
    beat.job = lease.job;
    beat.epoch = lease.epoch;
    beat.uid = lease.uid;
    beat.progress.set_steps_done(steps);
    return beat;
  }
  BeatReply SendBeat(const LeaseToken& lease, const Beat& beat) {
    auto reply = store().Heartbeat({lease.session, {beat}}, now_);
    EXPECT_EQ(Outcome(reply), "OK");
    return reply.ok() && reply->jobs.size() == 1 ? reply->jobs[0] : BeatReply{};
  }
  BeatReply SendBeat(const LeaseToken& lease, int64_t steps = 0) {
    return SendBeat(lease, BeatOf(lease, steps));
  }
  static v1::JobEvent LogEvent(const std::string& message) {
    v1::JobEvent event;
    event.mutable_log()->set_message(message);
    return event;
  }

  static CompleteRequest Completion(const LeaseToken& lease, const std::string& sha = "sha") {
    CompleteRequest request;
    request.lease = lease;
    request.manifest_sha256 = sha;
    request.total_bytes = 1000;
    request.file_count = 3;
    request.artifact_uri = "file:///artifacts/" + lease.job.id;
    request.result.set_peak_rss_bytes(42);
    return request;
  }
  std::string Complete(const LeaseToken& lease, const std::string& sha = "sha") {
    return Outcome(store().Complete(Completion(lease, sha), now_));
  }
  static FailRequest Failure(const LeaseToken& lease,
                             v1::FailureClass who = v1::FAILURE_CLASS_ENVIRONMENT,
                             const std::string& reason = "STORAGE_ERROR") {
    FailRequest request;
    request.lease = lease;
    request.error.set_failure_class(who);
    request.error.set_reason(reason);
    request.error.set_message("it did not work");
    request.retryable = who != v1::FAILURE_CLASS_USER;
    return request;
  }

  std::vector<v1::JobEvent> EventsOf(const std::string& id) {
    auto batch = store().Events(Key(id), 0, 100000);
    EXPECT_EQ(Outcome(batch), "OK");
    return batch.ok() ? batch->events : std::vector<v1::JobEvent>{};
  }
  // "QUEUED RUNNING SUCCEEDED"
  std::string StatesOf(const std::string& id) {
    std::string states;
    for (const v1::JobEvent& event : EventsOf(id)) {
      if (!event.has_state_changed()) continue;
      if (!states.empty()) states += " ";
      states += JobStateName(*FromProto(event.state_changed().to()));
    }
    return states;
  }

  // The promises of job_store.h that must hold whatever a test did.
  void CheckInvariants();

  JobPolicy policy_;
  std::unique_ptr<StoreInstance> instance_;

 private:
  Time now_ = FromUnixMicros(int64_t{1'700'000'000'000'000});
  int sessions_ = 0;
};

}  // namespace quantry::server
