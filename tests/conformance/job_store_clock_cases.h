#pragma once

#include <chrono>

#include "tests/conformance/job_store_fixture.h"

// Steps of the store's clock. Advance() before a call and back behind it is another
// server's call, which has noticed a step that this one has not, or the reverse.
namespace quantry::server {

inline constexpr std::chrono::hours kClockStep(1);

TEST_P(JobStoreSuite, ABeatOfAServerThatLagsBehindAStepCostsNoLease) {
  Sweep();
  Submit("job-one");
  const LeaseToken lease = Acquire(Register("w1"));
  for (int steps = 1; steps <= 5; ++steps) {
    Advance(kClockStep);
    EXPECT_TRUE(Sweep().pushed_leases);
    Advance(-kClockStep);
    EXPECT_EQ(SendBeat(lease, steps).directive, v1::DIRECTIVE_CONTINUE);
    CheckpointRequest request{lease, {}, {}};
    request.checkpoint.set_blocks_done(steps);
    EXPECT_EQ(Outcome(store().CommitCheckpoint(request, now())), "OK");
    Advance(kClockStep + Seconds(1));
    EXPECT_EQ(Sweep().lost, 0) << steps;
  }
  EXPECT_EQ(StateOf("job-one"), JobState::kRunning);
  EXPECT_EQ(Complete(lease), "OK");
}

TEST_P(JobStoreSuite, AClaimAtAServerThatLagsBehindAStepHasAWholeLease) {
  Sweep();
  SubmitRequest request = Request("job-one");
  request.spec.mutable_stop_limits()->mutable_max_run()->set_seconds(600);
  Submit(request);
  const std::string session = Register("w1");
  Advance(kClockStep);
  EXPECT_TRUE(Sweep().pushed_leases);
  Advance(-kClockStep);
  const LeaseToken lease = Acquire(session);
  Advance(kClockStep + Seconds(1));
  SweepReport report = Sweep();
  EXPECT_EQ(report.lost + report.max_run + report.max_pending, 0);
  EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_CONTINUE);
  AdvanceSweeping(policy_.lease_ttl - Seconds(1));
  EXPECT_EQ(StateOf("job-one"), JobState::kRunning);
  AdvanceSweeping(Seconds(1));
  EXPECT_EQ(StateOf("job-one"), JobState::kQueued) << "it was silent from then on";
}

TEST_P(JobStoreSuite, AStepBackDoesNotFreezeALease) {
  Sweep();
  Submit("job-one");
  const LeaseToken lease = Acquire(Register("w1"));
  SendBeat(lease);
  AdvanceSweeping(Seconds(5));
  Advance(-kClockStep);
  EXPECT_EQ(Sweep().lost, 0);
  AdvanceSweeping(policy_.lease_ttl - Seconds(1));
  EXPECT_EQ(StateOf("job-one"), JobState::kRunning);
  AdvanceSweeping(Seconds(1));
  EXPECT_EQ(StateOf("job-one"), JobState::kQueued);
  EXPECT_EQ(Get("job-one").state_reason, "WORKER_LOST");
}

TEST_P(JobStoreSuite, ARestartAfterAStepBackDoesNotFreezeALease) {
  Sweep();
  Submit("job-one");
  SendBeat(Acquire(Register("w1")));
  Reopen();
  Advance(-kClockStep);
  Sweep();
  AdvanceSweeping(policy_.lease_ttl);
  EXPECT_EQ(StateOf("job-one"), JobState::kQueued);
}

// The step is known by then; what it writes lies an hour ahead.
TEST_P(JobStoreSuite, ABeatOfAServerThatIsStillAheadDoesNotFreezeALease) {
  Sweep();
  Submit("job-one");
  const LeaseToken lease = Acquire(Register("w1"));
  Advance(-kClockStep);
  Sweep();
  Advance(kClockStep);
  SendBeat(lease, 1);
  Advance(Seconds(5) - kClockStep);
  EXPECT_EQ(Sweep().lost, 0);
  AdvanceSweeping(policy_.lease_ttl - Seconds(1));
  EXPECT_EQ(StateOf("job-one"), JobState::kRunning);
  AdvanceSweeping(Seconds(1));
  EXPECT_EQ(StateOf("job-one"), JobState::kQueued);
}

TEST_P(JobStoreSuite, WhatAnAttemptHasTakenStaysThroughAStepBack) {
  Sweep();
  SubmitRequest request = Request("job-one");
  request.spec.mutable_stop_limits()->mutable_max_no_progress()->set_seconds(60);
  Submit(request);
  const LeaseToken lease = Acquire(Register("w1"));
  for (int i = 0; i < 6; ++i) {
    SendBeat(lease);
    AdvanceSweeping(Seconds(5));
  }
  Advance(-kClockStep);
  int beats = 0;
  for (Sweep(); StateOf("job-one") == JobState::kRunning && beats < 100; ++beats) {
    SendBeat(lease);
    AdvanceSweeping(Seconds(5));
  }
  EXPECT_EQ(beats, (60 - 30) / 5);
  EXPECT_EQ(Get("job-one").state_reason, "NO_PROGRESS");
}

TEST_P(JobStoreSuite, AStepBackLengthensNoBackoffAndNoGraceOfACancel) {
  Sweep();
  Submit("job-one");
  const std::string session = Register("w1");
  ASSERT_EQ(Outcome(store().Fail(Failure(Acquire(session)), now())), "OK");
  Advance(-kClockStep);
  Sweep();
  const LeaseToken lease = AcquireAgain(session);
  EXPECT_EQ(lease.job, Key("job-one"));
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  Advance(-kClockStep);
  Sweep();
  for (int beats = 0; beats < 12; ++beats) {
    EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_CANCEL) << beats;
    AdvanceSweeping(Seconds(5));
  }
  EXPECT_EQ(StateOf("job-one"), JobState::kCancelled);
}

}  // namespace quantry::server
