#pragma once

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/conformance/faulty_job_store.h"
#include "tests/conformance/job_store_fixture.h"

// Many callers at once, and stores that lie about what they did.
namespace quantry::server {

// Calls until the store can be reached.
template <typename Call>
auto UntilReached(const Call& call) {
  auto result = call();
  while (Outcome(result) == "STORE_UNAVAILABLE") result = call();
  return result;
}

TEST_P(JobStoreSuite, EightThreadsClaimTwoHundredJobsOnceEach) {
  for (int i = 0; i < 200; ++i) Submit("job-" + std::to_string(i));
  std::mutex mutex;
  std::vector<std::string> claimed;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, session = Register("w" + std::to_string(i))] {
      while (true) {
        auto grant = store().Acquire({session, NewUuid4()}, now());
        ASSERT_EQ(Outcome(grant), "OK");
        if (!*grant) return;
        EXPECT_EQ((*grant)->job.epoch, 1);
        std::lock_guard lock(mutex);
        claimed.push_back((*grant)->job.key.id);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(claimed.size(), 200u);
  EXPECT_EQ(std::set<std::string>(claimed.begin(), claimed.end()).size(), 200u);
}

// Claims that find a tenant full go on to the next one, each in its own order.
TEST_P(JobStoreSuite, EightThreadsWorkForTenantsAtTheirQuotas) {
  constexpr int64_t kMaxRunning = 2;
  constexpr int kJobs = 30;
  const std::array<std::string, 2> tenants = {"acme", "other"};
  for (const std::string& tenant : tenants) {
    ASSERT_EQ(Outcome(store().SetQuota({.tenant = tenant, .max_running = kMaxRunning})), "OK");
  }
  for (int i = 0; i < kJobs; ++i) {
    SubmitRequest request = Request("job-" + std::to_string(i));
    request.key.tenant = tenants[static_cast<size_t>(i) % tenants.size()];
    Submit(request);
  }
  std::mutex mutex;
  std::map<std::string, int64_t> running;  // by tenant; guarded by mutex
  std::atomic<int> done{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, session = Register("w" + std::to_string(i))] {
      while (done < kJobs && !HasFailure()) {
        auto grant = store().Acquire({session, NewUuid4()}, now());
        ASSERT_EQ(Outcome(grant), "OK");
        if (!*grant) continue;
        const LeaseToken lease{session, (*grant)->job.key, (*grant)->job.epoch};
        {
          std::lock_guard lock(mutex);
          EXPECT_LE(++running[lease.job.tenant], kMaxRunning);
        }
        SendBeat(lease, 1);
        {
          std::lock_guard lock(mutex);
          --running[lease.job.tenant];
        }
        EXPECT_EQ(Complete(lease), "OK");
        ++done;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(JobStoreSuite, CancelAndCommitRaceHasOneWinner) {
  std::string session = Register("w1");
  int committed = 0;
  for (int i = 0; i < 40; ++i) {
    std::string id = "job-" + std::to_string(i);
    Submit(id);
    LeaseToken lease = Acquire(session);
    std::string cancel;
    std::thread canceller([&] { cancel = Outcome(store().Cancel({Key(id), "", ""}, now())); });
    std::string commit = Complete(lease);
    canceller.join();
    JobState state = StateOf(id);
    if (commit == "OK") {
      ++committed;
      EXPECT_EQ(cancel, "JOB_ALREADY_ENDED");
      EXPECT_EQ(state, JobState::kSucceeded);
    } else {
      EXPECT_EQ(commit, "LEASE_LOST");
      EXPECT_EQ(cancel, "OK");
      EXPECT_EQ(state, JobState::kCancelled);
    }
  }
  RecordProperty("committed", committed);
}

TEST_P(JobStoreSuite, OneFailedCallDoesNotHarmItsNeighbours) {
  Submit("taken");
  std::vector<std::string> outcomes(64);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    threads.emplace_back([&, i] {
      std::string id = i % 2 == 0 ? "taken" : "job-" + std::to_string(i);
      outcomes[i] = Outcome(store().Submit(Request(id), now()));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < outcomes.size(); ++i) {
    EXPECT_EQ(outcomes[i], i % 2 == 0 ? "JOB_ID_TAKEN" : "OK");
    if (i % 2 == 1) {
      EXPECT_EQ(StateOf("job-" + std::to_string(i)), JobState::kQueued);
    }
  }
}

// A worker as it should be: repeats what it cannot know about.
class SteadyWorker {
 public:
  SteadyWorker(JobStore* store, v1::WorkerInfo info) : store_(store), info_(std::move(info)) {}

  // One job, or nothing. Returns false when there was nothing to do.
  bool Work(Time now, std::mt19937_64& random) {
    if (session_.empty()) Register(now);
    AcquireRequest request{session_, NewUuid4()};
    auto grant = UntilReached([&] { return store_->Acquire(request, now); });
    EXPECT_EQ(Outcome(grant), "OK");
    if (!grant.ok() || !*grant) return false;
    LeaseToken lease{session_, (*grant)->job.key, (*grant)->job.epoch};
    SendEvents(lease, now);
    if (random() % 3 == 0) {
      GiveUp(lease, now, random() % 2 == 0);
    } else {
      Complete(lease, now);
    }
    return true;
  }

 private:
  void Register(Time now) {
    session_ = NewUuid4();
    EXPECT_EQ(Outcome(UntilReached([&] { return store_->RegisterWorker(info_, session_, now); })),
              "OK");
  }
  void SendEvents(const LeaseToken& lease, Time now) {
    Beat beat;
    beat.job = lease.job;
    beat.epoch = lease.epoch;
    for (int i = 0; i < 3; ++i) {
      beat.events.events.emplace_back().mutable_log()->set_message(std::to_string(i));
      EXPECT_EQ(Outcome(UntilReached([&] {
                  return store_->Heartbeat({session_, {beat}}, now);
                })),
                "OK");
    }
  }
  // The answer to a repeat may be LEASE_LOST: the first call did it.
  void GiveUp(const LeaseToken& lease, Time now, bool fail) {
    FailRequest request;
    request.lease = lease;
    request.error.set_reason("STORAGE_ERROR");
    request.retryable = true;
    std::string outcome =
        fail ? Outcome(UntilReached([&] { return store_->Fail(request, now); }))
             : Outcome(UntilReached([&] { return store_->Release(lease, "drain", now); }));
    EXPECT_TRUE(outcome == "OK" || outcome == "LEASE_LOST") << outcome;
  }
  void Complete(const LeaseToken& lease, Time now) {
    CompleteRequest request;
    request.lease = lease;
    request.manifest_sha256 = lease.job.id + "/" + std::to_string(lease.epoch);
    EXPECT_EQ(Outcome(UntilReached([&] { return store_->Complete(request, now); })), "OK");
  }

  JobStore* store_;
  v1::WorkerInfo info_;
  std::string session_;
};

TEST_P(JobStoreSuite, NothingIsLostOrDoneTwiceWhenRepliesAreLost) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    FaultyJobStore faulty(&store(), {0.15, 0.25, seed});
    std::mt19937_64 random(seed);
    std::vector<SubmitRequest> submitted;
    for (int i = 0; i < 20; ++i) {
      SubmitRequest request = Request("job-" + std::to_string(seed) + "-" + std::to_string(i));
      request.request_id = NewUuid4();
      request.spec.mutable_retry_policy()->set_max_attempts(1000);
      ASSERT_EQ(Outcome(UntilReached([&] { return faulty.Submit(request, now()); })), "OK");
      submitted.push_back(request);
    }
    SteadyWorker worker(&faulty, Info("w" + std::to_string(seed)));
    for (int idle = 0; idle < 2; Advance(policy_.backoff_cap)) {
      idle = worker.Work(now(), random) ? 0 : idle + 1;
    }
    EXPECT_GT(faulty.faults(), 50);
    for (const SubmitRequest& request : submitted) {
      Job job = Get(request.key.id);
      EXPECT_EQ(job.state, JobState::kSucceeded);
      EXPECT_EQ(job.uid, request.uid);
      auto artifact = store().GetArtifact("acme", job.uid);
      ASSERT_EQ(Outcome(artifact), "OK");
      EXPECT_EQ(artifact->manifest_sha256, job.key.id + "/" + std::to_string(job.epoch));
      std::map<int64_t, std::string> logs;  // by attempt
      for (const auto& event : EventsOf(job.key.id)) logs[event.epoch()] += event.log().message();
      for (int64_t epoch = 1; epoch <= job.epoch; ++epoch) EXPECT_EQ(logs[epoch], "012");
    }
  }
}

}  // namespace quantry::server
