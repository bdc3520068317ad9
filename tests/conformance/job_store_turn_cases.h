#pragma once

#include "tests/conformance/job_store_fixture.h"

// Whose jobs are claimed first when several tenants have some queued. Jobs of
// acme are called a0, a1, ..., those of other b0, b1, ....
namespace quantry::server {

class JobStoreTurns : public JobStoreSuite {
 protected:
  void SetUp() override {
    JobStoreSuite::SetUp();
    session_ = Register("w1");
  }
  SubmitRequest Of(const std::string& id) const {
    SubmitRequest request = Request(id);
    request.key.tenant = id[0] == 'a' ? "acme" : "other";
    return request;
  }
  void SubmitSome(char letter, int first, int end) {
    for (int i = first; i < end; ++i) Submit(Of(letter + std::to_string(i)));
  }
  void SubmitWithPriority(const std::string& id, int priority) {
    SubmitRequest request = Of(id);
    request.priority = priority;
    Submit(request);
  }
  // What the next claims give, each a second after the one before: "a0 b0".
  // Unless they run on, the jobs end at once.
  std::string Claim(int claims, bool run_on = false) {
    std::string given;
    for (int i = 0; i < claims; ++i) {
      Advance(Seconds(1));
      const LeaseToken lease = Acquire(session_);
      given += (given.empty() ? "" : " ") + lease.job.id;
      if (!run_on) {
        EXPECT_EQ(Complete(lease), "OK");
      }
    }
    return given;
  }
  std::string Start(int claims) { return Claim(claims, true); }

  std::string session_;
};

TEST_P(JobStoreTurns, ATenantThatComesLateIsServedInTurn) {
  SubmitSome('a', 0, 50);
  SubmitSome('b', 0, 3);
  EXPECT_EQ(Claim(3), "a0 b0 a1");
  Reopen();
  EXPECT_EQ(Claim(5), "b1 a2 b2 a3 a4");
}

TEST_P(JobStoreTurns, WhoRunsFewerGoesFirstThenWhoWasServedLongestAgo) {
  SubmitSome('a', 0, 10);
  EXPECT_EQ(Start(3), "a0 a1 a2");
  SubmitSome('b', 0, 5);
  EXPECT_EQ(Start(5), "b0 b1 b2 a3 b3");
}

TEST_P(JobStoreTurns, ACancellingJobStillRuns) {
  SubmitSome('a', 0, 2);
  EXPECT_EQ(Start(1), "a0");
  SubmitSome('b', 0, 2);
  EXPECT_EQ(Claim(1), "b0");
  ASSERT_EQ(Outcome(store().Cancel({Of("a0").key, "", ""}, now())), "OK");
  EXPECT_EQ(Claim(2), "b1 a1");
}

TEST_P(JobStoreTurns, PriorityCountsInsideATenant) {
  SubmitWithPriority("a0", 0);
  SubmitWithPriority("a1", 5);
  SubmitWithPriority("b0", 0);
  SubmitWithPriority("b1", 100);
  EXPECT_EQ(Claim(4), "a1 b1 a0 b0");
}

TEST_P(JobStoreTurns, AnotherAttemptIsATurn) {
  SubmitSome('a', 0, 2);
  SubmitSome('b', 0, 3);
  ASSERT_EQ(Outcome(store().Fail(Failure(Acquire(session_)), now())), "OK");
  EXPECT_EQ(Claim(1), "b0");
  Advance(policy_.backoff_cap);
  EXPECT_EQ(Claim(4), "a0 b1 a1 b2");
}

TEST_P(JobStoreTurns, WhoHasNothingForTheWorkerIsPassedOver) {
  SubmitRequest gpu = Of("a0");
  gpu.spec.mutable_resources()->set_gpu_count(1);
  Submit(gpu);
  SubmitSome('b', 0, 3);
  EXPECT_EQ(Claim(2), "b0 b1");
  v1::WorkerInfo large = Info("large");
  large.add_gpus()->set_memory_bytes(1000);
  session_ = Register(large);
  EXPECT_EQ(Claim(2), "a0 b2");
}

TEST_P(JobStoreTurns, ADeletedJobWasATurn) {
  SubmitSome('a', 0, 4);
  SubmitSome('b', 0, 2);
  EXPECT_EQ(Claim(1), "a0");
  ASSERT_EQ(Outcome(store().Delete({Of("a0").key, ""}, now())), "OK");
  EXPECT_EQ(Claim(2), "b0 a1");
  ASSERT_EQ(Outcome(store().Delete({Of("a1").key, ""}, now())), "OK");
  EXPECT_EQ(Claim(3), "b1 a2 a3");
}

TEST_P(JobStoreTurns, AStepBackOfTheClockTakesNobodysTurn) {
  ASSERT_EQ(Outcome(store().Sweep(now())), "OK");
  SubmitSome('a', 0, 3);
  SubmitSome('b', 0, 4);
  EXPECT_EQ(Claim(1), "a0");
  ASSERT_EQ(Outcome(store().Sweep(now())), "OK");
  Advance(Seconds(-3600));
  ASSERT_EQ(Outcome(store().Sweep(now())), "OK");
  EXPECT_EQ(Claim(4), "b0 a1 b1 a2");
}

}  // namespace quantry::server
