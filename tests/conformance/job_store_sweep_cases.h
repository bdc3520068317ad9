#pragma once

#include "server/jobs/operator_view.h"
#include "tests/conformance/job_store_fixture.h"

// Leases that lapse, limits, expiry, outages, restarts.
namespace quantry::server {

TEST_P(JobStoreSuite, AFirstLeaseLapsesSooner) {
  Sweep();
  Submit("job-one");
  Acquire(Register("w1"));
  AdvanceSweeping(Seconds(14));
  EXPECT_EQ(StateOf("job-one"), JobState::kRunning);
  AdvanceSweeping(Seconds(1));
  EXPECT_EQ(StateOf("job-one"), JobState::kQueued);
  EXPECT_EQ(Get("job-one").state_reason, "WORKER_LOST");
}

TEST_P(JobStoreSuite, ASilentWorkerLosesTheJobAndItsLateCommitIsRefused) {
  Sweep();
  Job job = Submit("job-one");
  LeaseToken zombie = Acquire(Register("w1"));
  SendBeat(zombie);
  AdvanceSweeping(Seconds(29));
  EXPECT_EQ(StateOf("job-one"), JobState::kRunning);
  Advance(Seconds(1));
  SweepReport report = Sweep();
  EXPECT_EQ(report.lost, 1);
  EXPECT_EQ(report.changed, std::vector<JobKey>{Key("job-one")});
  EXPECT_EQ(Complete(zombie), "LEASE_LOST");
  LeaseToken heir = AcquireAgain(Register("w2"));
  EXPECT_EQ(heir.epoch, 2);
  EXPECT_EQ(Complete(zombie), "LEASE_LOST");
  EXPECT_EQ(Complete(heir, "the heir's"), "OK");
  EXPECT_EQ(store().GetArtifact("acme", job.uid)->manifest_sha256, "the heir's");
  EXPECT_EQ(Complete(zombie), "LEASE_LOST");
  EXPECT_EQ(Get("job-one").worker_losses, 1);
  EXPECT_EQ(Get("job-one").user_failures, 0);
}

TEST_P(JobStoreSuite, AnExpiredLeaseThatNobodyReclaimedCanBeRenewed) {
  Sweep();
  Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  Advance(Seconds(100));
  EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_CONTINUE);
}

TEST_P(JobStoreSuite, LossesOnThreeWorkersPoisonAJob) {
  Sweep();
  Submit("job-one");
  for (const char* worker : {"w1", "w1", "w2", "w3"}) {
    EXPECT_EQ(StateOf("job-one"), JobState::kQueued) << worker;
    std::string session = Register(worker);
    AdvanceSweeping(policy_.backoff_cap);
    Acquire(session);
    AdvanceSweeping(policy_.first_lease_ttl);
  }
  EXPECT_EQ(StateOf("job-one"), JobState::kFailed);
  EXPECT_EQ(ReasonOf(FromRpcStatus(Get("job-one").error)), "POISON_JOB");
  EXPECT_EQ(Get("job-one").worker_losses, 4);
}

// On machines that are taken away every few hours.
TEST_P(JobStoreSuite, AJobThatGetsOnIsNotPoison) {
  Sweep();
  Submit("job-one");
  int blocks = 0;
  const auto lose = [&](const char* worker, bool checkpoint) {
    EXPECT_EQ(StateOf("job-one"), JobState::kQueued) << worker;
    const std::string session = Register(worker);
    AdvanceSweeping(policy_.backoff_cap);
    CheckpointRequest request{Acquire(session), {}, {}};
    request.checkpoint.set_blocks_done(++blocks);
    if (checkpoint) {
      ASSERT_EQ(Outcome(store().CommitCheckpoint(request, now())), "OK");
    }
    AdvanceSweeping(policy_.lease_ttl);
  };
  for (const char* worker : {"w1", "w2", "w3", "w4", "w5"}) lose(worker, true);
  lose("w6", false);
  EXPECT_EQ(StateOf("job-one"), JobState::kQueued) << "w5 and w6 since block 5";
  lose("w7", false);
  EXPECT_EQ(StateOf("job-one"), JobState::kFailed);
  EXPECT_EQ(Get("job-one").state_reason, "POISON_JOB");
}

TEST_P(JobStoreSuite, TheOnlyWorkerIsNotKilledForever) {
  Sweep();
  std::string session = Register("w1");
  Submit("job-one");
  int attempts = 0;
  for (; StateOf("job-one") == JobState::kQueued && attempts < 50; ++attempts) {
    AdvanceSweeping(policy_.backoff_cap);
    Acquire(session);
    AdvanceSweeping(policy_.first_lease_ttl);
  }
  EXPECT_EQ(attempts, policy_.max_losses_without_checkpoint);
  EXPECT_EQ(StateOf("job-one"), JobState::kFailed);
}

TEST_P(JobStoreSuite, ACancelledJobOfALostWorkerIsCancelled) {
  Sweep();
  Submit("job-one");
  Acquire(Register("w1"));
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  AdvanceSweeping(Seconds(20));
  EXPECT_EQ(StateOf("job-one"), JobState::kCancelled);
}

TEST_P(JobStoreSuite, AWorkerThatNeverConfirmsACancelLosesTheJob) {
  Sweep();
  Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  for (int beats = 0; beats < 12; ++beats) {
    EXPECT_EQ(SendBeat(lease, beats).directive, v1::DIRECTIVE_CANCEL);
    AdvanceSweeping(Seconds(5));
  }
  EXPECT_EQ(StateOf("job-one"), JobState::kCancelled);
  EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_LOST);
}

TEST_P(JobStoreSuite, AJobThatStandsStillIsTakenAway) {
  Sweep();
  SubmitRequest request = Request("job-one");
  request.spec.mutable_stop_limits()->mutable_max_no_progress()->set_seconds(60);
  Submit(request);
  LeaseToken lease = Acquire(Register("w1"));
  int beats = 0;
  for (; StateOf("job-one") == JobState::kRunning && beats < 100; ++beats) {
    SendBeat(lease, std::min(beats, 6));  // stands still after the seventh
    AdvanceSweeping(Seconds(5));
  }
  EXPECT_EQ(beats, 6 + 60 / 5);
  EXPECT_EQ(Get("job-one").state_reason, "NO_PROGRESS");
  EXPECT_EQ(Get("job-one").user_failures, 1);
  EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_LOST);
}

TEST_P(JobStoreSuite, BytesThatMoveAreProgressWhileFilesAreMoved) {
  struct Case {
    v1::Stage stage;
    const char* metric;
    bool progress;
  };
  const Case cases[] = {
      {v1::STAGE_FETCHING, "fetched_bytes", true},    {v1::STAGE_FETCHING, "restored_bytes", true},
      {v1::STAGE_FETCHING, "lookups", false},         {v1::STAGE_LOADING, "loaded_bytes", true},
      {v1::STAGE_QUANTIZING, "fetched_bytes", false}, {v1::STAGE_QUANTIZING, "loaded_bytes", false},
      {v1::STAGE_UPLOADING, "uploaded_bytes", true}};
  int n = 0;
  for (const Case& test : cases) {
    Sweep();
    const std::string id = "job-" + std::to_string(++n);
    SubmitRequest request = Request(id);
    request.spec.mutable_stop_limits()->mutable_max_no_progress()->set_seconds(60);
    Submit(request);
    const LeaseToken lease = Acquire(Register(id));
    const auto run = [&](int seconds, int bytes_a_beat) {
      for (int s = 0; s < seconds; s += 5) {
        Beat beat = BeatOf(lease);
        beat.progress.set_stage(test.stage);
        (*beat.progress.mutable_metrics())[test.metric] = 1 + bytes_a_beat * s;
        SendBeat(lease, beat);
        AdvanceSweeping(Seconds(5));
      }
    };
    run(120, 1000);
    EXPECT_EQ(StateOf(id), test.progress ? JobState::kRunning : JobState::kQueued) << test.metric;
    if (test.progress) run(70, 0);
    EXPECT_EQ(Get(id).state_reason, "NO_PROGRESS") << test.metric;
    ASSERT_EQ(Outcome(store().Cancel({Key(id), "", ""}, now())), "OK");
  }
}

TEST_P(JobStoreSuite, WorkersNotHeardOfForADayAreForgotten) {
  Sweep();
  const std::string gone = Register("gone");
  const std::string idle = Register("idle");
  Submit("job-one");
  const LeaseToken lease = Acquire(Register("busy"));
  Advance(policy_.forget_worker_after + Duration(Seconds(1)));
  EXPECT_TRUE(Sweep().pushed_leases) << "nobody swept for a day";
  ASSERT_EQ(Outcome(store().Heartbeat({idle, {}}, now())), "OK");
  Advance(Seconds(5));
  Sweep();
  const auto workers = store().ListWorkers("", 100, now());
  ASSERT_EQ(Outcome(workers), "OK");
  std::vector<std::string> names;
  for (const Worker& worker : *workers) names.push_back(worker.info.worker_id());
  EXPECT_EQ(names, (std::vector<std::string>{"busy", "idle"})) << "one holds a job, one reports";
  EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_CONTINUE);
  EXPECT_EQ(Outcome(store().Acquire({gone, NewUuid4()}, now())), "UNKNOWN_WORKER");
}

TEST_P(JobStoreSuite, MaxRunCountsAllAttempts) {
  Sweep();
  SubmitRequest request = Request("job-one");
  request.spec.mutable_stop_limits()->mutable_max_run()->set_seconds(60);
  Submit(request);
  std::string session = Register("w1");
  LeaseToken lease = Acquire(session);
  auto run = [&](int seconds) {
    for (int s = 0; s < seconds; s += 5) {
      SendBeat(lease, s + 1);
      AdvanceSweeping(Seconds(5));
    }
  };
  run(40);
  ASSERT_EQ(Outcome(store().Release(lease, "", now())), "OK");
  AdvanceSweeping(Seconds(500));  // queued: does not count
  lease = Acquire(session);
  run(15);
  EXPECT_EQ(StateOf("job-one"), JobState::kRunning);
  SendBeat(lease, 1000);
  Advance(Seconds(5));
  EXPECT_EQ(Sweep().max_run, 1);
  EXPECT_EQ(StateOf("job-one"), JobState::kFailed);
  EXPECT_EQ(Get("job-one").state_reason, "MAX_RUN_EXCEEDED");
}

TEST_P(JobStoreSuite, MaxPending) {
  Sweep();
  SubmitRequest request = Request("job-one");
  request.spec.mutable_stop_limits()->mutable_max_pending()->set_seconds(20);
  Submit(request);
  Submit("patient");
  AdvanceSweeping(Seconds(19));
  EXPECT_EQ(StateOf("job-one"), JobState::kQueued);
  AdvanceSweeping(Seconds(1));
  EXPECT_EQ(StateOf("job-one"), JobState::kFailed);
  EXPECT_EQ(Get("job-one").state_reason, "MAX_PENDING_EXCEEDED");
  EXPECT_EQ(StateOf("patient"), JobState::kQueued);
}

// As many as were overdue after a night's pause.
TEST_P(JobStoreSuite, ASweepStaysShort) {
  policy_.max_removed_per_sweep = 2;
  instance_ = nullptr;
  instance_ = GetParam().make(policy_);
  Sweep();
  for (const char* id : {"job-one", "job-two", "job-three", "job-four", "job-five"}) {
    SubmitRequest request = Request(id);
    request.spec.mutable_stop_limits()->mutable_max_pending()->set_seconds(1);
    request.expire_time = now() + Seconds(20);
    Submit(request);
    Register(id);
  }
  std::vector<int> ended;
  std::vector<size_t> expired;
  for (int sweeps = 0; sweeps < 8; ++sweeps) {
    Advance(Seconds(5));
    const SweepReport report = Sweep();
    ended.push_back(report.max_pending);
    expired.push_back(report.removed.size());
  }
  EXPECT_EQ(ended, (std::vector<int>{2, 2, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(expired, (std::vector<size_t>{0, 0, 0, 2, 2, 1, 0, 0}));
  Advance(policy_.forget_worker_after);
  EXPECT_TRUE(Sweep().pushed_leases);
  std::vector<size_t> workers;
  for (int sweeps = 0; sweeps < 3; ++sweeps) {
    Advance(Seconds(5));
    Sweep();
    workers.push_back(store().ListWorkers("", 100, now())->size());
  }
  EXPECT_EQ(workers, (std::vector<size_t>{3, 1, 0}));
}

TEST_P(JobStoreSuite, AJobIsToldWhyNobodyTakesIt) {
  Sweep();
  Job job = Submit(Request("job-one", "awq"));
  auto logs = [&] {
    std::vector<std::string> messages;
    for (const auto& event : EventsOf("job-one")) {
      if (event.has_log()) messages.push_back(event.log().message());
    }
    return messages;
  };
  Advance(Seconds(4));
  EXPECT_EQ(Sweep().waiting, 0) << "give the workers time";
  Advance(Seconds(1));
  SweepReport report = Sweep();
  EXPECT_EQ(report.waiting, 1);
  EXPECT_EQ(report.changed, std::vector<JobKey>{Key("job-one")});
  EXPECT_EQ(Get("job-one").state_reason, "waiting: no worker is connected");
  EXPECT_EQ(Get("job-one").version, job.version) << "the etag is not about this";

  v1::WorkerInfo info = Info("w1");
  info.clear_methods();
  info.add_methods("rtn");
  std::string session = Register(info);
  EXPECT_EQ(Sweep().waiting, 0) << "it was told just now";
  // Twelve beats a minute, each with another refusal if there is one at all.
  const auto beat_for_a_minute = [&](const std::string& refusal) {
    for (int i = 0; i < 12; ++i) {
      const std::string words = refusal.empty() ? "" : refusal + std::to_string(i);
      ASSERT_EQ(Outcome(store().Heartbeat({session, {}, words}, now())), "OK");
      AdvanceSweeping(Seconds(5));
    }
  };
  beat_for_a_minute("");
  EXPECT_EQ(Get("job-one").state_reason, "waiting: each worker does not offer the method awq");
  session = Register("w1");
  beat_for_a_minute("its disk has a free MiB less: ");
  EXPECT_EQ(store().ListWorkers("", 100, now())->at(0).refusal, "its disk has a free MiB less: 11");
  EXPECT_EQ(logs(), (std::vector<std::string>{
                        "waiting: no worker is connected",
                        "waiting: each worker does not offer the method awq",
                        "waiting: each worker takes no jobs: its disk has a free MiB less: 11"}));
  beat_for_a_minute("");
  EXPECT_EQ(Get("job-one").state_reason, "");
  EXPECT_EQ(logs().back(), "a worker takes the job when its turn comes");
  EXPECT_EQ(Acquire(session).job, Key("job-one"));
  Sweep();
  EXPECT_EQ(Get("job-one").state_reason, "claimed by w1");
}

// Where machines come and go, every sweep meets other ones.
TEST_P(JobStoreSuite, OtherWorkersWithTheSameReasonAreNoNews) {
  Sweep();
  Submit(Request("job-one", "awq"));
  AdvanceSweeping(Seconds(5));
  for (int i = 0; i < 60; ++i) {
    v1::WorkerInfo info = Info("w" + std::to_string(i));
    info.clear_methods();
    info.add_methods("rtn");
    Register(info);
    AdvanceSweeping(Seconds(5));
  }
  EXPECT_EQ(Get("job-one").state_reason, "waiting: each worker does not offer the method awq");
  EXPECT_EQ(EventsOf("job-one").size(), 3u) << "queued, no worker, the wrong workers";
}

TEST_P(JobStoreSuite, EndedJobsAreRemovedWhenTheyExpire) {
  Sweep();
  for (const char* id : {"ended", "queued"}) {
    SubmitRequest request = Request(id);
    request.expire_time = now() + Seconds(10);
    Submit(request);
  }
  ASSERT_EQ(Outcome(store().Cancel({Key("ended"), "", ""}, now())), "OK");
  AdvanceSweeping(Seconds(9));
  EXPECT_EQ(StateOf("ended"), JobState::kCancelled);
  Advance(Seconds(1));
  EXPECT_EQ(Sweep().removed, std::vector<JobKey>{Key("ended")}) << "the audit log names them";
  EXPECT_EQ(Outcome(store().Get(Key("ended"))), "JOB_NOT_FOUND");
  EXPECT_EQ(StateOf("queued"), JobState::kQueued);
  EXPECT_EQ(store().ListGarbage(10)->size(), 1u);
}

TEST_P(JobStoreSuite, AnOutageDoesNotCostLeases) {
  Sweep();
  Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  SendBeat(lease, 1);
  Advance(std::chrono::hours(1));
  EXPECT_TRUE(Sweep().pushed_leases);
  AdvanceSweeping(policy_.lease_ttl - Seconds(1));
  EXPECT_EQ(StateOf("job-one"), JobState::kRunning);
  EXPECT_EQ(SendBeat(lease, 1).directive, v1::DIRECTIVE_CONTINUE);
  EXPECT_FALSE(Sweep().pushed_leases);
  EXPECT_EQ(StateOf("job-one"), JobState::kRunning) << "the outage is not lack of progress";
  AdvanceSweeping(policy_.lease_ttl);
  EXPECT_EQ(StateOf("job-one"), JobState::kQueued);
}

// Waiting workers claim the moment a store is back, before its first sweep.
TEST_P(JobStoreSuite, AnOutageIsNoTimeOfWhatBeganAfterIt) {
  Sweep();
  SubmitRequest request = Request("job-one");
  request.spec.mutable_stop_limits()->mutable_max_run()->set_seconds(20);
  Submit(request);
  const std::string session = Register("w1");
  Advance(std::chrono::hours(2));
  const LeaseToken lease = Acquire(session);
  EXPECT_TRUE(Sweep().pushed_leases);
  for (int s = 0; s < 20; s += 5) {
    SendBeat(lease, s + 1);
    EXPECT_EQ(StateOf("job-one"), JobState::kRunning) << s;
    AdvanceSweeping(Seconds(5));
  }
  EXPECT_EQ(Get("job-one").state_reason, "MAX_RUN_EXCEEDED");
}

TEST_P(JobStoreSuite, ARestartKeepsEverything) {
  Sweep();
  std::string session = Register("w1");
  SubmitRequest request = Request("job-one");
  request.request_id = "r1";
  Submit(request);
  LeaseToken lease = Acquire(session);
  Beat beat = BeatOf(lease, 3);
  beat.events.events = {LogEvent("0")};
  SendBeat(lease, beat);
  Submit("job-two");
  Reopen();
  Advance(Seconds(60));
  EXPECT_TRUE(Sweep().pushed_leases);
  EXPECT_FALSE(store().Submit(request, now())->created);
  beat.events.events.push_back(LogEvent("1"));
  BeatReply reply = SendBeat(lease, beat);
  EXPECT_EQ(reply.directive, v1::DIRECTIVE_CONTINUE);
  EXPECT_EQ(reply.next_event_offset, 2);
  EXPECT_EQ(Complete(lease), "OK");
  Reopen();
  EXPECT_EQ(Complete(lease), "OK") << "a repeat";
  EXPECT_EQ(StatesOf("job-one"), "QUEUED RUNNING SUCCEEDED");
  EXPECT_EQ(Acquire(session).job, Key("job-two"));
}

TEST_P(JobStoreSuite, StatsCountDelayedAndOldest) {
  EXPECT_EQ(store().Stats(now())->oldest_queued, std::nullopt);
  Time first = now();
  Submit("job-one");
  Advance(Seconds(1));
  Submit("job-two");
  auto stats = store().Stats(now());
  EXPECT_EQ(stats->depth, 2);
  EXPECT_EQ(stats->oldest_queued, first);
  LeaseToken lease = Acquire(Register("w1"));
  ASSERT_EQ(Outcome(store().Fail(Failure(lease), now())), "OK");
  stats = store().Stats(now());
  EXPECT_EQ(stats->depth, 1);
  EXPECT_EQ(stats->delayed, 1);
  Advance(policy_.backoff_cap);
  stats = store().Stats(now());
  EXPECT_EQ(stats->depth, 2);
  EXPECT_EQ(stats->delayed, 0);
}

TEST_P(JobStoreSuite, StatsLeaveOutWhatAQuotaHolds) {
  const auto counted = [&] {
    const auto stats = store().Stats(now());
    return std::vector<int64_t>{stats->depth, stats->held, stats->delayed};
  };
  for (const char* id : {"job-one", "job-two", "job-three"}) Submit(id);
  ASSERT_TRUE(store().SetQuota({.tenant = "other", .max_running = 1}).ok());
  EXPECT_EQ(counted(), (std::vector<int64_t>{3, 0, 0}));
  ASSERT_TRUE(store().SetQuota({.tenant = "acme", .max_running = 2}).ok());
  EXPECT_EQ(counted(), (std::vector<int64_t>{2, 1, 0}));
  const std::string session = Register("w1");
  const LeaseToken lease = Acquire(session);
  EXPECT_EQ(counted(), (std::vector<int64_t>{1, 1, 0}));
  Acquire(Register("w2"));
  EXPECT_EQ(counted(), (std::vector<int64_t>{0, 1, 0}));
  ASSERT_TRUE(store().SetQuota({.tenant = "acme", .max_running = 1}).ok());
  EXPECT_EQ(counted(), (std::vector<int64_t>{0, 1, 0})) << "more run than may";
  ASSERT_EQ(Outcome(store().Fail(Failure(lease), now())), "OK");
  EXPECT_EQ(counted(), (std::vector<int64_t>{0, 1, 1}));
}

TEST_P(JobStoreSuite, OperatorsSeeJobsOfAllTenants) {
  auto* view = dynamic_cast<OperatorView*>(&store());
  if (view == nullptr) GTEST_SKIP() << "wrapped";
  const auto ids = [&](JobsAcross which, int limit) {
    std::string text;
    auto jobs = view->ListAcross(which, limit);
    EXPECT_EQ(Outcome(jobs), "OK");
    for (const Job& job : *jobs) text += (text.empty() ? "" : " ") + job.key.id;
    return text;
  };
  EXPECT_EQ(ids(JobsAcross::kWaiting, 9) + ids(JobsAcross::kLeased, 9) + ids(JobsAcross::kEnded, 9),
            "");
  for (const char* id : {"job-one", "job-two", "job-three", "job-four", "job-five"}) {
    SubmitRequest request = Request(id);
    if (std::string(id) == "job-two") request.key.tenant = "other";
    Submit(request);
    Advance(Seconds(1));
  }
  EXPECT_EQ(ids(JobsAcross::kWaiting, 3), "job-one job-two job-three");
  const std::string session = Register("w1");
  const LeaseToken first = Acquire(session);
  const LeaseToken second = Acquire(session);
  EXPECT_EQ(second.job.tenant, "other");
  EXPECT_EQ(ids(JobsAcross::kWaiting, 9), "job-three job-four job-five");
  EXPECT_EQ(Complete(second), "OK");
  EXPECT_EQ(ids(JobsAcross::kLeased, 9), "job-one");
  Advance(Seconds(1));
  EXPECT_EQ(Complete(first), "OK");
  EXPECT_EQ(ids(JobsAcross::kEnded, 9), "job-one job-two") << "by their end";
  EXPECT_EQ(ids(JobsAcross::kEnded, 1), "job-one");
  EXPECT_EQ(view->ListAcross(JobsAcross::kEnded, 1)->at(0).state, JobState::kSucceeded);
}

}  // namespace quantry::server
