#pragma once

#include <algorithm>
#include <thread>

#include "tests/conformance/job_store_fixture.h"

// Jobs that take the result of another one with the same spec.
namespace quantry::server {

class JobStoreTwins : public JobStoreSuite {
 protected:
  static constexpr const char* kVersion = "1.0";

  void SetUp() override {
    JobStoreSuite::SetUp();
    session_ = RegisterVersion("w1", kVersion);
  }
  std::string RegisterVersion(const std::string& worker, const std::string& version) {
    v1::WorkerInfo info = Info(worker);
    info.set_engine_version(version);
    return Register(info);
  }
  SubmitRequest Reusing(const std::string& id, const std::string& version = kVersion) const {
    SubmitRequest request = Request(id);
    request.reuse_result = true;
    request.engine_version = version;
    return request;
  }
  Reuse SubmitReusing(const SubmitRequest& request) {
    auto result = store().Submit(request, now());
    EXPECT_EQ(Outcome(result), "OK");
    return result.ok() ? result->reuse : Reuse::kNotAsked;
  }
  Reuse SubmitReusing(const std::string& id) { return SubmitReusing(Reusing(id)); }
  // Submitted, run and committed.
  Job Finished(const std::string& id) {
    Submit(id);
    EXPECT_EQ(Complete(Acquire(session_)), "OK");
    return Get(id);
  }
  std::vector<std::string> GarbageUids() {
    auto garbage = store().ListGarbage(100);
    EXPECT_EQ(Outcome(garbage), "OK");
    std::vector<std::string> uids;
    for (const Garbage& item : *garbage) uids.push_back(item.job_uid);
    std::sort(uids.begin(), uids.end());
    return uids;
  }

  std::string session_;
};

TEST_P(JobStoreTwins, AFinishedJobGivesItsResultAtOnce) {
  const Job first = Finished("job-one");
  EXPECT_EQ(first.artifact_uid, first.uid);
  Advance(Seconds(5));
  auto submitted = store().Submit(Reusing("job-two"), now());
  ASSERT_EQ(Outcome(submitted), "OK");
  EXPECT_EQ(submitted->reuse, Reuse::kHit);
  for (const Job& second : {submitted->job, Get("job-two")}) {
    EXPECT_EQ(second.state, JobState::kSucceeded);
    EXPECT_TRUE(second.has_artifact);
    EXPECT_EQ(second.artifact_uid, first.uid);
    EXPECT_EQ(second.result_of, "job-one");
    EXPECT_EQ(second.result->SerializeAsString(), first.result->SerializeAsString());
    EXPECT_EQ(second.epoch, 0);
    EXPECT_EQ(second.end_time, now());
    EXPECT_EQ(second.start_time, std::nullopt);
  }
  EXPECT_EQ(StatesOf("job-two"), "QUEUED SUCCEEDED");
  EXPECT_FALSE(TryAcquire(session_).has_value());
  // A third one names the job that made the artifact, whichever it found.
  EXPECT_EQ(SubmitReusing("job-three"), Reuse::kHit);
  EXPECT_EQ(Get("job-three").result_of, "job-one");
}

TEST_P(JobStoreTwins, WhatGivesNoResult) {
  Finished("job-one");
  SubmitRequest other_tenant = Reusing("job-two");
  other_tenant.key.tenant = "other";
  SubmitRequest other_digest = Reusing("job-three");
  other_digest.spec_digest = "another";
  EXPECT_EQ(SubmitReusing(other_tenant), Reuse::kMiss);
  EXPECT_EQ(SubmitReusing(other_digest), Reuse::kMiss);
  EXPECT_EQ(SubmitReusing(Reusing("job-four", "2.0")), Reuse::kMiss);
  EXPECT_EQ(SubmitReusing(Reusing("job-five", "")), Reuse::kMiss);
  EXPECT_EQ(SubmitReusing(Request("job-six")), Reuse::kNotAsked);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(TryAcquire(session_).has_value()) << i;
}

TEST_P(JobStoreTwins, FailedAndCancelledJobsGiveNone) {
  Submit("job-one");
  ASSERT_EQ(Outcome(store().Fail(Failure(Acquire(session_), v1::FAILURE_CLASS_USER), now())), "OK");
  Submit("job-two");
  ASSERT_EQ(Outcome(store().Cancel({Key("job-two"), "", ""}, now())), "OK");
  Submit("job-three");
  const LeaseToken lease = Acquire(session_);
  ASSERT_EQ(Outcome(store().Cancel({Key("job-three"), "", ""}, now())), "OK");
  EXPECT_EQ(StateOf("job-three"), JobState::kCancelling);
  EXPECT_EQ(SubmitReusing("job-four"), Reuse::kMiss);
}

TEST_P(JobStoreTwins, OneWaitsForARunningJobAndEndsWithIt) {
  Submit("job-one");
  Advance(Seconds(1));
  EXPECT_EQ(SubmitReusing("job-two"), Reuse::kJoined);
  EXPECT_EQ(StateOf("job-two"), JobState::kQueued);
  EXPECT_NE(Get("job-two").state_reason.find("job-one"), std::string::npos);
  auto stats = store().Stats(now());
  EXPECT_EQ(stats->depth, 1);
  EXPECT_EQ(stats->delayed, 1);
  const LeaseToken lease = Acquire(session_);
  EXPECT_EQ(lease.job, Key("job-one"));
  EXPECT_EQ(SubmitReusing("job-three"), Reuse::kJoined);
  EXPECT_FALSE(TryAcquire(session_).has_value());
  EXPECT_EQ(store().Stats(now())->oldest_queued, std::nullopt) << "nobody keeps them waiting";
  Advance(Seconds(3));
  ASSERT_EQ(Complete(lease), "OK");
  for (const char* id : {"job-two", "job-three"}) {
    const Job job = Get(id);
    EXPECT_EQ(job.state, JobState::kSucceeded) << id;
    EXPECT_EQ(job.artifact_uid, Get("job-one").uid);
    EXPECT_EQ(job.result_of, "job-one");
    EXPECT_EQ(job.end_time, now());
    EXPECT_EQ(StatesOf(id), "QUEUED SUCCEEDED");
  }
  EXPECT_FALSE(TryAcquire(session_).has_value());
}

TEST_P(JobStoreTwins, AfterAFailureTheFirstRunsAndTheOthersWaitForIt) {
  Submit("job-one");
  for (const char* id : {"job-two", "job-three", "job-four"}) {
    EXPECT_EQ(SubmitReusing(id), Reuse::kJoined) << id;
  }
  ASSERT_EQ(Outcome(store().Fail(Failure(Acquire(session_), v1::FAILURE_CLASS_USER), now())), "OK");
  EXPECT_EQ(StateOf("job-one"), JobState::kFailed);
  EXPECT_NE(Get("job-three").state_reason.find("job-two"), std::string::npos);
  const LeaseToken lease = Acquire(session_);
  EXPECT_EQ(lease.job, Key("job-two"));
  EXPECT_FALSE(TryAcquire(session_).has_value());
  EXPECT_EQ(Complete(lease), "OK");
  EXPECT_EQ(Get("job-two").result_of, "");
  for (const char* id : {"job-three", "job-four"}) EXPECT_EQ(Get(id).result_of, "job-two") << id;
}

// The end of one rewrites all that wait for it at once.
TEST_P(JobStoreTwins, AHundredWaitForOneJob) {
  Submit("job-one");
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(SubmitReusing("twin-" + std::to_string(i)), Reuse::kJoined) << i;
  }
  EXPECT_EQ(SubmitReusing("job-two"), Reuse::kMiss);
  EXPECT_EQ(SubmitReusing("late"), Reuse::kJoined);
  EXPECT_EQ(Complete(Acquire(session_)), "OK");
  EXPECT_EQ(StateOf("twin-99"), JobState::kSucceeded);
  EXPECT_EQ(StateOf("late"), JobState::kQueued) << "waits for job-two";
  EXPECT_EQ(SubmitReusing("job-three"), Reuse::kHit);
}

TEST_P(JobStoreTwins, ACancelledJobLeavesTheOtherToRunItself) {
  Submit("job-one");
  EXPECT_EQ(SubmitReusing("job-two"), Reuse::kJoined);
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  EXPECT_EQ(Acquire(session_).job, Key("job-two"));
}

TEST_P(JobStoreTwins, AnAttemptThatIsRepeatedIsStillWaitedFor) {
  Submit("job-one");
  EXPECT_EQ(SubmitReusing("job-two"), Reuse::kJoined);
  ASSERT_EQ(Outcome(store().Fail(Failure(Acquire(session_)), now())), "OK");
  EXPECT_EQ(StateOf("job-one"), JobState::kQueued);
  const LeaseToken again = AcquireAgain(session_);
  EXPECT_EQ(again.job, Key("job-one"));
  EXPECT_EQ(Complete(again), "OK");
  EXPECT_EQ(StateOf("job-two"), JobState::kSucceeded);
}

TEST_P(JobStoreTwins, AnotherEngineVersionsResultIsNotTaken) {
  const std::string newer = RegisterVersion("w2", "2.0");
  Submit("job-one");
  EXPECT_EQ(SubmitReusing("job-two"), Reuse::kJoined);  // nobody knows who will run it
  const LeaseToken lease = Acquire(newer);
  EXPECT_EQ(SubmitReusing("job-three"), Reuse::kMiss);
  EXPECT_EQ(Complete(lease), "OK");
  EXPECT_EQ(StateOf("job-two"), JobState::kQueued);
  EXPECT_TRUE(TryAcquire(session_).has_value());
  EXPECT_TRUE(TryAcquire(session_).has_value());
}

TEST_P(JobStoreTwins, OneThatWaitsCanBeCancelledAndRetried) {
  Submit("job-one");
  EXPECT_EQ(SubmitReusing("job-two"), Reuse::kJoined);
  const LeaseToken lease = Acquire(session_);
  ASSERT_EQ(Outcome(store().Cancel({Key("job-two"), "", ""}, now())), "OK");
  EXPECT_EQ(Complete(lease), "OK");
  EXPECT_EQ(StateOf("job-two"), JobState::kCancelled);
  ASSERT_EQ(Outcome(store().Retry({.key = Key("job-two")}, now())), "OK");
  EXPECT_EQ(Acquire(session_).job, Key("job-two"));
}

TEST_P(JobStoreTwins, WaitingHasItsLimitAndSurvivesARestart) {
  Submit("job-one");
  SubmitRequest patient = Reusing("job-two");
  SubmitRequest hasty = Reusing("job-three");
  hasty.spec.mutable_stop_limits()->mutable_max_pending()->set_seconds(60);
  EXPECT_EQ(SubmitReusing(patient), Reuse::kJoined);
  EXPECT_EQ(SubmitReusing(hasty), Reuse::kJoined);
  LeaseToken lease = Acquire(session_);
  Reopen();
  Sweep();
  for (int i = 0; i < 14; ++i) {
    Advance(Seconds(5));
    SendBeat(lease, i + 1);
    Sweep();
  }
  EXPECT_EQ(StateOf("job-three"), JobState::kFailed);
  EXPECT_EQ(StateOf("job-two"), JobState::kQueued);
  EXPECT_EQ(Complete(lease), "OK");
  EXPECT_EQ(StateOf("job-two"), JobState::kSucceeded);
  EXPECT_EQ(StateOf("job-three"), JobState::kFailed);
}

TEST_P(JobStoreTwins, AnArtifactOutlivesTheJobThatMadeIt) {
  const Job first = Finished("job-one");
  SubmitReusing("job-two");
  SubmitReusing("job-three");
  const std::string two = Get("job-two").uid;
  const std::string three = Get("job-three").uid;
  ASSERT_EQ(Outcome(store().Delete({Key("job-one"), ""}, now())), "OK");
  EXPECT_TRUE(GarbageUids().empty());
  auto artifact = store().GetArtifact("acme", first.uid);
  ASSERT_EQ(Outcome(artifact), "OK");
  EXPECT_EQ(artifact->uri, "file:///artifacts/job-one");
  EXPECT_EQ(artifact->job, Key("job-two"));
  EXPECT_EQ(SubmitReusing("job-four"), Reuse::kHit);
  EXPECT_EQ(Get("job-four").result_of, "job-two");
  ASSERT_EQ(Outcome(store().Delete({Key("job-four"), ""}, now())), "OK");
  ASSERT_EQ(Outcome(store().Delete({Key("job-two"), ""}, now())), "OK");
  EXPECT_EQ(Get("job-three").artifact_uid, first.uid);
  EXPECT_EQ(Outcome(store().GetArtifact("acme", first.uid)), "OK");
  ASSERT_EQ(Outcome(store().Delete({Key("job-three"), ""}, now())), "OK");
  EXPECT_EQ(Outcome(store().GetArtifact("acme", first.uid)), "ARTIFACT_NOT_FOUND");
  const auto garbage = GarbageUids();
  EXPECT_EQ(garbage.size(), 4u);
  for (const std::string& uid : {first.uid, two, three}) {
    EXPECT_TRUE(std::binary_search(garbage.begin(), garbage.end(), uid));
  }
}

TEST_P(JobStoreTwins, ExpiryLeavesASharedArtifactToo) {
  SubmitRequest brief = Request("job-one");
  brief.expire_time = now() + Seconds(10);
  Submit(brief);
  EXPECT_EQ(Complete(Acquire(session_)), "OK");
  SubmitReusing("job-two");
  Sweep();
  Advance(Seconds(11));
  EXPECT_EQ(Sweep().removed.size(), 1u);
  EXPECT_EQ(Outcome(store().Get(Key("job-one"))), "JOB_NOT_FOUND");
  EXPECT_EQ(Outcome(store().GetArtifact("acme", Get("job-two").artifact_uid)), "OK");
}

TEST_P(JobStoreTwins, AHitIsNoPlaceInTheQueue) {
  Finished("job-one");
  ASSERT_EQ(Outcome(store().SetQuota({.tenant = "acme", .max_queued = 1})), "OK");
  SubmitRequest fills = Request("job-two");
  fills.spec_digest = "another";
  Submit(fills);
  EXPECT_EQ(SubmitReusing("job-three"), Reuse::kHit);
  SubmitRequest joins = Reusing("job-four");
  joins.spec_digest = "another";
  EXPECT_EQ(Outcome(store().Submit(joins, now())), "QUOTA_QUEUED");
}

TEST_P(JobStoreTwins, AHitTakesASubmitAndNoBytes) {
  Finished("job-one");
  ASSERT_EQ(Outcome(store().SetQuota(
                {.tenant = "acme", .max_stored_bytes = 1, .max_submits_per_minute = 1})),
            "OK");
  EXPECT_EQ(SubmitReusing("job-two"), Reuse::kHit);
  EXPECT_EQ(Outcome(store().Submit(Reusing("job-three"), now())), "QUOTA_SUBMIT_RATE");
}

TEST_P(JobStoreTwins, OfManyAtOnceOneRuns) {
  std::vector<std::thread> threads;
  std::vector<Reuse> reuse(16, Reuse::kNotAsked);
  for (size_t i = 0; i < reuse.size(); ++i) {
    threads.emplace_back([&, i] { reuse[i] = SubmitReusing("job-" + std::to_string(i)); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::count(reuse.begin(), reuse.end(), Reuse::kMiss), 1);
  EXPECT_EQ(std::count(reuse.begin(), reuse.end(), Reuse::kJoined), 15);
  EXPECT_EQ(Complete(Acquire(session_)), "OK");
  for (size_t i = 0; i < reuse.size(); ++i) {
    EXPECT_EQ(StateOf("job-" + std::to_string(i)), JobState::kSucceeded);
  }
}

// Submits that race with the end of the job they would wait for: none is lost.
TEST_P(JobStoreTwins, SubmitsThatRaceWithTheEnd) {
  for (int round = 0; round < 5; ++round) {
    const std::string prefix = "round-" + std::to_string(round) + "-";
    const auto reusing = [&](const std::string& id) {
      SubmitRequest request = Reusing(prefix + id);
      request.spec_digest = prefix;
      return request;
    };
    SubmitReusing(reusing("first"));
    const LeaseToken lease = Acquire(session_);
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i) {
      threads.emplace_back([&, i] { SubmitReusing(reusing(std::to_string(i))); });
    }
    threads.emplace_back([&] { EXPECT_EQ(Complete(lease), "OK"); });
    for (std::thread& thread : threads) thread.join();
    for (int i = 0; i < 6; ++i) {
      const Job job = Get(prefix + std::to_string(i));
      EXPECT_EQ(job.state, JobState::kSucceeded) << job.key.id;
      EXPECT_EQ(job.result_of, prefix + "first");
    }
  }
}

}  // namespace quantry::server
