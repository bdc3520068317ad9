#pragma once

#include "tests/conformance/job_store_fixture.h"

// Register, Acquire, Heartbeat, CommitCheckpoint, Complete, Fail, Release.
namespace quantry::server {

TEST_P(JobStoreSuite, AcquireGivesTheLeaseAndCountsEpochs) {
  std::string session = Register("w1");
  EXPECT_EQ(TryAcquire(session), std::nullopt);
  Submit("job-one");
  Advance(Seconds(3));
  auto grant = TryAcquire(session);
  ASSERT_TRUE(grant);
  EXPECT_EQ(grant->job.key, Key("job-one"));
  EXPECT_EQ(grant->job.epoch, 1);
  EXPECT_EQ(grant->job.state, JobState::kRunning);
  EXPECT_EQ(grant->job.worker, "w1");
  EXPECT_EQ(grant->job.start_time, now());
  EXPECT_EQ(grant->job.spec.seed(), 7);
  EXPECT_EQ(grant->ttl, policy_.first_lease_ttl);
  EXPECT_FALSE(grant->resume);
  EXPECT_EQ(TryAcquire(session), std::nullopt);
  EXPECT_EQ(StatesOf("job-one"), "QUEUED RUNNING");
}

TEST_P(JobStoreSuite, AcquireRepeatedReturnsTheSameLease) {
  std::string session = Register("w1");
  Submit("job-one");
  Submit("job-two");
  auto first = TryAcquire(session, "a1");
  ASSERT_TRUE(first);
  Advance(Seconds(10));
  auto again = TryAcquire(session, "a1");
  ASSERT_TRUE(again);
  EXPECT_EQ(again->job.key, first->job.key);
  EXPECT_EQ(again->job.epoch, 1);
  EXPECT_EQ(Get(again->job.key.id).last_sequence, 2);
  auto other = TryAcquire(session, "a2");
  ASSERT_TRUE(other);
  EXPECT_NE(other->job.key, first->job.key);
}

TEST_P(JobStoreSuite, AcquireOrdersByPriorityThenAgeAndNothingStarves) {
  auto submit = [&](const std::string& id, int priority) {
    SubmitRequest request = Request(id);
    request.priority = priority;
    Submit(request);
    Advance(Seconds(1));
  };
  submit("old-low", -1);
  submit("first", 0);
  submit("second", 0);
  submit("urgent", 5);
  Advance(Seconds(70));
  submit("late-low", 0);
  std::string session = Register("w1");
  std::vector<std::string> order;
  while (auto grant = TryAcquire(session)) order.push_back(grant->job.key.id);
  // old-low has waited for more than one level's 60 s longer than late-low.
  EXPECT_EQ(order, (std::vector<std::string>{"urgent", "first", "second", "old-low", "late-low"}));
}

TEST_P(JobStoreSuite, UpdatedPriorityCounts) {
  Submit("first");
  Submit("second");
  UpdateRequest update;
  update.key = Key("second");
  update.priority = 10;
  ASSERT_EQ(Outcome(store().Update(update, now())), "OK");
  EXPECT_EQ(Acquire(Register("w1")).job, Key("second"));
}

TEST_P(JobStoreSuite, AcquireOnlyWhatTheWorkerCanRun) {
  SubmitRequest awq = Request("awq-job", "awq");
  SubmitRequest gpu = Request("gpu-job");
  gpu.spec.mutable_resources()->set_gpu_count(1);
  gpu.spec.mutable_resources()->set_min_gpu_memory_bytes(1000);
  SubmitRequest cuda = Request("cuda-job");
  cuda.spec.mutable_resources()->set_device("cuda:0");
  SubmitRequest memory = Request("memory-job");
  memory.spec.mutable_resources()->set_host_memory_bytes(5000);
  for (const SubmitRequest& request : {awq, gpu, cuda, memory}) Submit(request);

  v1::WorkerInfo plain = Info("plain");
  plain.clear_methods();
  plain.add_methods("rtn");
  plain.set_host_memory_bytes(4999);
  EXPECT_EQ(TryAcquire(Register(plain)), std::nullopt);

  v1::WorkerInfo small = plain;
  small.set_worker_id("small-gpu");
  small.add_gpus()->set_memory_bytes(999);
  std::string small_session = Register(small);
  EXPECT_EQ(Acquire(small_session).job, Key("cuda-job"));
  EXPECT_EQ(TryAcquire(small_session), std::nullopt);

  v1::WorkerInfo large = Info("large");
  large.add_gpus()->set_memory_bytes(10);
  large.add_gpus()->set_memory_bytes(1000);
  std::string large_session = Register(large);
  std::set<std::string> got;
  while (auto grant = TryAcquire(large_session)) got.insert(grant->job.key.id);
  EXPECT_EQ(got, (std::set<std::string>{"awq-job", "gpu-job", "memory-job"}));
}

TEST_P(JobStoreSuite, UnknownSessions) {
  LeaseToken lease{"no-such-session", Key("job-one"), 1};
  EXPECT_EQ(Outcome(store().Acquire({"no-such-session", "a"}, now())), "UNKNOWN_WORKER");
  EXPECT_EQ(Outcome(store().Heartbeat({"no-such-session"}, now())), "UNKNOWN_WORKER");
  EXPECT_EQ(Outcome(store().CommitCheckpoint({lease, {}, {}}, now())), "UNKNOWN_WORKER");
  EXPECT_EQ(Complete(lease), "UNKNOWN_WORKER");
  EXPECT_EQ(Outcome(store().Fail(Failure(lease), now())), "UNKNOWN_WORKER");
  EXPECT_EQ(Outcome(store().Release(lease, "", now())), "UNKNOWN_WORKER");
  std::string old_session = Register("w1");
  Register("w1");
  EXPECT_EQ(Outcome(store().Heartbeat({old_session}, now())), "UNKNOWN_WORKER");
}

TEST_P(JobStoreSuite, RegisteringAgainKeepsTheLeases) {
  Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  lease.session = Register("w1");
  EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_CONTINUE);
  EXPECT_EQ(Complete(lease), "OK");
}

TEST_P(JobStoreSuite, AnotherIncarnationLosesTheLeasesOfTheDeadOne) {
  Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  v1::WorkerInfo restarted = Info("w1");
  restarted.set_incarnation("another");
  const std::string session = "another-session";
  const auto lapsed = store().RegisterWorker(restarted, session, now());
  ASSERT_EQ(Outcome(lapsed), "OK");
  EXPECT_EQ(*lapsed, 1);
  EXPECT_EQ(store().RegisterWorker(restarted, session, now()).value_or(-1), 0);
  EXPECT_EQ(StateOf("job-one"), JobState::kQueued);
  EXPECT_EQ(Get("job-one").worker_losses, 1);
  lease.session = session;
  EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_LOST);
  EXPECT_EQ(AcquireAgain(session).epoch, 2);
}

TEST_P(JobStoreSuite, HeartbeatStoresProgressAndRenews) {
  Sweep();
  Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  for (int i = 1; i <= 10; ++i) {
    AdvanceSweeping(Seconds(10));
    BeatReply reply = SendBeat(lease, i);
    EXPECT_EQ(reply.directive, v1::DIRECTIVE_CONTINUE);
    EXPECT_EQ(reply.ttl, policy_.lease_ttl);
  }
  EXPECT_EQ(Get("job-one").progress.steps_done(), 10);
  EXPECT_EQ(Get("job-one").version, 2) << "progress must not change the etag";
  EXPECT_EQ(Get("job-one").worker_losses, 0);
}

TEST_P(JobStoreSuite, AHeartbeatsAnswerNamesTheWorker) {
  const std::string session = Register("w1");
  Register("w2");
  const auto reply = store().Heartbeat({session}, now());
  ASSERT_EQ(Outcome(reply), "OK");
  EXPECT_EQ(reply->worker_id, "w1");
}

TEST_P(JobStoreSuite, EventsOfAnAttemptAreStoredOnce) {
  Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  Beat beat = BeatOf(lease);
  beat.events.events = {LogEvent("0"), LogEvent("1")};
  EXPECT_EQ(SendBeat(lease, beat).next_event_offset, 2);
  EXPECT_EQ(SendBeat(lease, beat).next_event_offset, 2);
  beat.events.events.push_back(LogEvent("2"));
  EXPECT_EQ(SendBeat(lease, beat).next_event_offset, 3);
  beat.events.offset = 7;  // a hole: 3..6 never came
  EXPECT_EQ(SendBeat(lease, beat).next_event_offset, 3);
  beat.events.offset = -1;
  EXPECT_EQ(SendBeat(lease, beat).next_event_offset, 3);
  CompleteRequest done = Completion(lease);
  done.events.offset = 2;
  done.events.events = {LogEvent("2"), LogEvent("3")};
  ASSERT_EQ(Outcome(store().Complete(done, now())), "OK");
  std::string log;
  for (const auto& event : EventsOf("job-one")) {
    log += event.log().message();
    if (event.has_log()) {
      EXPECT_EQ(event.epoch(), 1);
    }
  }
  EXPECT_EQ(log, "0123");
}

TEST_P(JobStoreSuite, WorkersCannotWriteStateChanges) {
  Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  Beat beat = BeatOf(lease);
  v1::JobEvent forged;
  forged.mutable_state_changed()->set_to(v1::JOB_STATE_SUCCEEDED);
  beat.events.events = {forged, v1::JobEvent(), LogEvent("fine")};
  EXPECT_EQ(SendBeat(lease, beat).next_event_offset, 3);
  EXPECT_EQ(StatesOf("job-one"), "QUEUED RUNNING");
  EXPECT_EQ(Get("job-one").last_sequence, 3);
}

TEST_P(JobStoreSuite, StaleWritesChangeNothing) {
  Submit("job-one");
  std::string session = Register("w1");
  LeaseToken stale = Acquire(session);
  ASSERT_EQ(Outcome(store().Release(stale, "", now())), "OK");
  auto check = [&](const LeaseToken& lease) {
    Job before = Get("job-one");
    Beat beat = BeatOf(lease, 99);
    beat.events.events = {LogEvent("from the dead")};
    EXPECT_EQ(SendBeat(lease, beat).directive, v1::DIRECTIVE_LOST);
    v1::CheckpointRef checkpoint;
    checkpoint.set_blocks_done(9);
    EXPECT_EQ(Outcome(store().CommitCheckpoint({lease, checkpoint, {}}, now())), "LEASE_LOST");
    EXPECT_EQ(Complete(lease), "LEASE_LOST");
    EXPECT_EQ(Outcome(store().Fail(Failure(lease), now())), "LEASE_LOST");
    EXPECT_EQ(Outcome(store().Release(lease, "", now())), "LEASE_LOST");
    Job after = Get("job-one");
    EXPECT_EQ(after.state, before.state);
    EXPECT_EQ(after.version, before.version);
    EXPECT_EQ(after.last_sequence, before.last_sequence);
    EXPECT_EQ(after.progress.steps_done(), before.progress.steps_done());
    EXPECT_FALSE(after.has_artifact);
  };
  check(stale);  // queued
  LeaseToken current = Acquire(session);
  EXPECT_EQ(current.epoch, 2);
  check(stale);                                         // another attempt runs
  check({Register("w2"), current.job, current.epoch});  // another worker
  check({session, current.job, 3});                     // an epoch to come
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  ASSERT_EQ(Outcome(store().Release(current, "", now())), "OK");
  check(current);  // ended
}

TEST_P(JobStoreSuite, CompleteIsTheCommitPoint) {
  Job job = Submit("job-one");
  Advance(Seconds(4));
  LeaseToken lease = Acquire(Register("w1"));
  Advance(Seconds(5));
  ASSERT_EQ(Complete(lease), "OK");
  Job done = Get("job-one");
  EXPECT_EQ(done.state, JobState::kSucceeded);
  EXPECT_EQ(done.end_time, now());
  ASSERT_TRUE(done.result);
  EXPECT_EQ(done.result->peak_rss_bytes(), 42);
  EXPECT_EQ(done.result->artifact_uri(), "file:///artifacts/job-one");
  EXPECT_DOUBLE_EQ(done.result->timing().queue_s(), 4.0);
  auto artifact = store().GetArtifact("acme", job.uid);
  ASSERT_EQ(Outcome(artifact), "OK");
  EXPECT_EQ(artifact->job, Key("job-one"));
  EXPECT_EQ(artifact->uri, "file:///artifacts/job-one");
  EXPECT_EQ(artifact->manifest_sha256, "sha");
  EXPECT_EQ(artifact->total_bytes, 1000);
  EXPECT_EQ(artifact->file_count, 3);
  EXPECT_EQ(artifact->epoch, 1);
  EXPECT_EQ(artifact->create_time, now());
  EXPECT_EQ(Outcome(store().GetArtifact("other", job.uid)), "ARTIFACT_NOT_FOUND");
  EXPECT_EQ(Complete(lease), "OK") << "a repeat";
  EXPECT_EQ(Complete(lease, "another sha"), "LEASE_LOST");
  EXPECT_EQ(Get("job-one").last_sequence, done.last_sequence);
}

TEST_P(JobStoreSuite, CommitAfterAnAcknowledgedCancelIsTooLate) {
  Job job = Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", "wrong text"}, now())), "OK");
  EXPECT_EQ(Complete(lease), "LEASE_LOST");
  EXPECT_EQ(StateOf("job-one"), JobState::kCancelled);
  EXPECT_EQ(Get("job-one").state_reason, "wrong text");
  EXPECT_EQ(Outcome(store().GetArtifact("acme", job.uid)), "ARTIFACT_NOT_FOUND");
}

TEST_P(JobStoreSuite, FailedQualityGateKeepsTheArtifact) {
  SubmitRequest submit = Request("job-one");
  submit.spec.mutable_quality_gate()->set_max_perplexity_ratio(1.1);
  Job job = Submit(submit);
  LeaseToken lease = Acquire(Register("w1"));
  CompleteRequest request = Completion(lease);
  request.result.set_quality_gate_failed(true);
  request.result.mutable_quality()->mutable_perplexity()->set_dense(8);
  request.result.mutable_quality()->mutable_perplexity()->set_quantized(9);
  ASSERT_EQ(Outcome(store().Complete(request, now())), "OK");
  EXPECT_EQ(StateOf("job-one"), JobState::kFailed);
  const absl::Status error = FromRpcStatus(Get("job-one").error);
  EXPECT_EQ(ReasonOf(error), "QUALITY_GATE_FAILED");
  EXPECT_NE(std::string(error.message()).find("a perplexity ratio of at most 1.1, got 1.125 "),
            std::string::npos)
      << error;
  EXPECT_EQ(Outcome(store().GetArtifact("acme", job.uid)), "OK");
  EXPECT_EQ(Outcome(store().Complete(request, now())), "OK") << "a repeat";
}

TEST_P(JobStoreSuite, ArtifactsPageNewestFirst) {
  std::string session = Register("w1");
  for (int i = 0; i < 3; ++i) {
    Submit("job-" + std::to_string(i));
    ASSERT_EQ(Complete(Acquire(session)), "OK");
    Advance(Seconds(1));
  }
  auto page = store().ListArtifacts("acme", 2, std::nullopt);
  ASSERT_EQ(Outcome(page), "OK");
  ASSERT_EQ(page->artifacts.size(), 2u);
  EXPECT_EQ(page->artifacts[0].job, Key("job-2"));
  ASSERT_TRUE(page->next);
  page = store().ListArtifacts("acme", 2, page->next);
  ASSERT_EQ(page->artifacts.size(), 1u);
  EXPECT_EQ(page->artifacts[0].job, Key("job-0"));
  EXPECT_FALSE(page->next);
  EXPECT_TRUE(store().ListArtifacts("other", 2, std::nullopt)->artifacts.empty());
}

TEST_P(JobStoreSuite, FailuresAreRetriedWithBackoffThenFinal) {
  std::string session = Register("w1");
  Submit("job-one");
  for (int attempt = 1; attempt <= 3; ++attempt) {
    LeaseToken lease = AcquireAgain(session);
    EXPECT_EQ(lease.epoch, attempt);
    FailRequest failure = Failure(lease, v1::FAILURE_CLASS_BUG, "ENGINE_CRASHED");
    failure.exit_signal = 9;
    failure.log_tail = "last words";
    auto state = store().Fail(failure, now());
    ASSERT_EQ(Outcome(state), "OK");
    EXPECT_EQ(*state, attempt < 3 ? JobState::kQueued : JobState::kFailed);
    EXPECT_EQ(TryAcquire(session), std::nullopt) << "must wait for the backoff";
  }
  Job job = Get("job-one");
  EXPECT_EQ(job.user_failures, 3);
  absl::Status error = FromRpcStatus(job.error);
  EXPECT_EQ(ReasonOf(error), "ENGINE_CRASHED");
  EXPECT_EQ(MetadataOf(error, "exit_signal"), "9");
  int tails = 0;
  for (const auto& event : EventsOf("job-one")) tails += event.log().message() == "last words";
  EXPECT_EQ(tails, 3);
}

TEST_P(JobStoreSuite, FailuresAreFinalUnlessRetryable) {
  std::string session = Register("w1");
  for (v1::FailureClass who :
       {v1::FAILURE_CLASS_USER, v1::FAILURE_CLASS_BUG, v1::FAILURE_CLASS_ENVIRONMENT}) {
    for (bool retryable : {false, true}) {
      std::string id = v1::FailureClass_Name(who) + (retryable ? "-again" : "-final");
      Submit(id);
      FailRequest failure = Failure(Acquire(session), who, "SOURCE_MISSING");
      failure.retryable = retryable;
      EXPECT_EQ(store().Fail(failure, now()).value(),
                retryable ? JobState::kQueued : JobState::kFailed)
          << id;
      EXPECT_EQ(Get(id).state_reason, "SOURCE_MISSING");
    }
  }
}

TEST_P(JobStoreSuite, MaxAttemptsOfTheSpec) {
  SubmitRequest request = Request("job-one");
  request.spec.mutable_retry_policy()->set_max_attempts(1);
  Submit(request);
  EXPECT_EQ(store().Fail(Failure(Acquire(Register("w1"))), now()).value(), JobState::kFailed);
}

TEST_P(JobStoreSuite, LogTailsAreCutAtACharacter) {
  Submit("job-one");
  FailRequest failure = Failure(Acquire(Register("w1")));
  for (int i = 0; i < 20000; ++i) failure.log_tail += "\u00e9";  // 2 bytes each
  failure.log_tail += "x";                                       // an odd end
  ASSERT_EQ(Outcome(store().Fail(failure, now())), "OK");
  std::string tail;
  for (const auto& event : EventsOf("job-one")) tail += event.log().message();
  EXPECT_LE(tail.size(), 16u * 1024);
  EXPECT_GT(tail.size(), 16u * 1024 - 4);
  EXPECT_EQ(tail.substr(0, 2), "\u00e9");
}

TEST_P(JobStoreSuite, ReleaseCostsNothing) {
  std::string session = Register("w1");
  Submit("job-one");
  for (int i = 1; i <= 5; ++i) {
    LeaseToken lease = Acquire(session);  // at once: no backoff
    EXPECT_EQ(lease.epoch, i);
    ASSERT_EQ(Outcome(store().Release(lease, "drain", now())), "OK");
  }
  EXPECT_EQ(Get("job-one").user_failures, 0);
  EXPECT_EQ(Get("job-one").worker_losses, 0);
  EXPECT_EQ(Get("job-one").state_reason, "drain");
}

TEST_P(JobStoreSuite, TheNextAttemptResumesFromTheCommittedCheckpoint) {
  std::string session = Register("w1");
  Submit("job-one");
  LeaseToken lease = Acquire(session);
  v1::CheckpointRef checkpoint;
  checkpoint.set_uri("file:///artifacts/1/checkpoint");
  checkpoint.set_blocks_done(2);
  checkpoint.add_files()->set_size_bytes(10);
  checkpoint.add_files()->set_size_bytes(20);
  ASSERT_EQ(Outcome(store().CommitCheckpoint({lease, checkpoint, {}}, now())), "OK");
  ASSERT_EQ(Outcome(store().CommitCheckpoint({lease, checkpoint, {}}, now())), "OK") << "a repeat";
  int events = 0;
  for (const auto& event : EventsOf("job-one")) {
    if (!event.has_checkpoint()) continue;
    ++events;
    EXPECT_EQ(event.checkpoint().blocks_done(), 2);
    EXPECT_EQ(event.checkpoint().bytes(), 30);
  }
  EXPECT_EQ(events, 1);
  ASSERT_EQ(Outcome(store().Release(lease, "", now())), "OK");
  auto grant = TryAcquire(session);
  ASSERT_TRUE(grant && grant->resume);
  EXPECT_EQ(grant->resume->SerializeAsString(), checkpoint.SerializeAsString());
}

TEST_P(JobStoreSuite, ALateRepeatOfACheckpointBringsNothingBack) {
  std::string session = Register("w1");
  Submit("job-one");
  v1::CheckpointRef checkpoint;
  checkpoint.set_uri("file:///artifacts/1/checkpoint");
  const auto commit = [&](const LeaseToken& lease, int blocks) {
    checkpoint.set_blocks_done(blocks);
    EXPECT_EQ(Outcome(store().CommitCheckpoint({lease, checkpoint, {}}, now())), "OK");
  };
  const auto next = [&](const LeaseToken& lease) {
    EXPECT_EQ(Outcome(store().Release(lease, "", now())), "OK");
    auto grant = TryAcquire(session);
    EXPECT_TRUE(grant && grant->resume);
    const int blocks = grant && grant->resume ? grant->resume->blocks_done() : -1;
    return std::pair(LeaseToken{session, grant->job.key, grant->job.epoch, grant->job.uid}, blocks);
  };
  const LeaseToken first = Acquire(session);
  for (const int blocks : {2, 3, 2}) commit(first, blocks);
  const auto [second, kept] = next(first);
  EXPECT_EQ(kept, 3);
  commit(second, 1);  // an attempt may begin anew
  EXPECT_EQ(next(second).second, 1);
}

// Checkpoints within a block, of the tuning or of the preprocessing have equally many blocks.
TEST_P(JobStoreSuite, ALateRepeatOfACountedCheckpointBringsNothingBack) {
  std::string session = Register("w1");
  Submit("job-one");
  const LeaseToken lease = Acquire(session);
  for (const int sequence : {1, 2, 1, 2}) {
    v1::CheckpointRef checkpoint;
    checkpoint.set_uri("file:///artifacts/1/checkpoint");
    checkpoint.set_blocks_done(2);
    checkpoint.set_sequence(sequence);
    checkpoint.add_files()->set_size_bytes(sequence);
    ASSERT_EQ(Outcome(store().CommitCheckpoint({lease, checkpoint, {}}, now())), "OK");
  }
  ASSERT_EQ(Outcome(store().Release(lease, "", now())), "OK");
  const auto grant = TryAcquire(session);
  ASSERT_TRUE(grant && grant->resume);
  EXPECT_EQ(grant->resume->sequence(), 2);
}

TEST_P(JobStoreSuite, EventsOfACheckpointComeBeforeIt) {
  Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  CheckpointRequest request{lease, {}, {0, {LogEvent("a"), LogEvent("b")}}};
  request.checkpoint.set_blocks_done(1);
  ASSERT_EQ(Outcome(store().CommitCheckpoint(request, now())), "OK");
  ASSERT_EQ(Outcome(store().CommitCheckpoint(request, now())), "OK") << "a repeat";
  Beat beat = BeatOf(lease);
  beat.events = {0, {LogEvent("a"), LogEvent("b"), LogEvent("c")}};
  EXPECT_EQ(SendBeat(lease, beat).next_event_offset, 3);
  std::string story;
  for (const auto& event : EventsOf("job-one")) {
    story += event.has_checkpoint() ? "|" : event.log().message();
  }
  EXPECT_EQ(story, "ab|c");
}

TEST_P(JobStoreSuite, Draining) {
  EXPECT_EQ(Outcome(store().DrainWorker("w1", false, now())), "WORKER_NOT_FOUND");
  std::string session = Register("w1");
  Submit("job-one");
  LeaseToken lease = Acquire(session);
  Submit("job-two");
  auto worker = store().DrainWorker("w1", false, now());
  ASSERT_EQ(Outcome(worker), "OK");
  EXPECT_TRUE(worker->draining);
  EXPECT_EQ(worker->jobs, std::vector<JobKey>{Key("job-one")});
  EXPECT_EQ(TryAcquire(session), std::nullopt);
  auto reply = store().Heartbeat({session, {BeatOf(lease)}}, now());
  EXPECT_EQ(reply->worker, v1::WORKER_DIRECTIVE_QUIET);
  EXPECT_EQ(reply->jobs[0].directive, v1::DIRECTIVE_CONTINUE);
  ASSERT_EQ(Outcome(store().DrainWorker("w1", true, now())), "OK");
  reply = store().Heartbeat({session, {BeatOf(lease)}}, now());
  EXPECT_EQ(reply->worker, v1::WORKER_DIRECTIVE_TERMINATE);
  EXPECT_EQ(reply->jobs[0].directive, v1::DIRECTIVE_CHECKPOINT_AND_RELEASE);
  v1::WorkerInfo restarted = Info("w1");
  restarted.set_incarnation("another");
  EXPECT_TRUE(TryAcquire(Register(restarted)));
}

TEST_P(JobStoreSuite, APausedQueueGivesNothingNew) {
  Sweep();
  std::string session = Register("w1");
  Submit("job-one");
  auto running = TryAcquire(session, "a1");
  ASSERT_TRUE(running);
  LeaseToken lease{session, running->job.key, running->job.epoch};
  Submit("job-two");
  EXPECT_EQ(store().Stats(now())->pause, std::nullopt);
  Time since = now();
  ASSERT_EQ(Outcome(store().PauseQueue("maintenance", now())), "OK");
  Advance(Seconds(5));
  ASSERT_EQ(Outcome(store().PauseQueue("new engine", now())), "OK");
  Reopen();
  auto stats = store().Stats(now());
  ASSERT_TRUE(stats->pause);
  EXPECT_EQ(stats->pause->reason, "new engine");
  EXPECT_EQ(stats->pause->since, since);
  EXPECT_EQ(TryAcquire(session), std::nullopt);
  EXPECT_TRUE(TryAcquire(session, "a1")) << "a lost reply is repeated";
  Sweep();
  EXPECT_EQ(Get("job-two").state_reason, "waiting: the queue is paused: new engine");
  EXPECT_EQ(SendBeat(lease, 1).directive, v1::DIRECTIVE_CONTINUE);
  EXPECT_EQ(Complete(lease), "OK");
  ASSERT_EQ(Outcome(store().ResumeQueue()), "OK");
  ASSERT_EQ(Outcome(store().ResumeQueue()), "OK") << "again";
  EXPECT_EQ(store().Stats(now())->pause, std::nullopt);
  EXPECT_EQ(Acquire(session).job, Key("job-two"));
}

// Above what is counted at once, where the counter of all tenants' jobs comes first.
TEST_P(JobStoreSuite, ALargeQuotaCountsTheTenantsOwnJobs) {
  constexpr int kLimit = 101;
  Sweep();
  ASSERT_EQ(Outcome(store().SetQuota({.tenant = "acme", .max_queued = kLimit})), "OK");
  for (int i = 0; i < 10; ++i) {
    SubmitRequest others = Request("theirs-" + std::to_string(i));
    others.key.tenant = "other";
    Submit(others);
  }
  Sweep();  // folds PostgreSQL's counter; what comes now does not wait for that
  for (int i = 0; i < kLimit; ++i) Submit("job-" + std::to_string(i));
  EXPECT_EQ(Outcome(store().Submit(Request("one-more"), now())), "QUOTA_QUEUED");
  ASSERT_EQ(Outcome(store().Cancel({Key("job-0"), "", ""}, now())), "OK");
  Submit("one-more");
  EXPECT_EQ(Outcome(store().Submit(Request("another"), now())), "QUOTA_QUEUED");
}

TEST_P(JobStoreSuite, QuotasOfATenant) {
  Sweep();
  auto set = [&](int64_t max_queued, int64_t max_running) {
    auto usage =
        store().SetQuota({.tenant = "acme", .max_queued = max_queued, .max_running = max_running});
    EXPECT_EQ(Outcome(usage), "OK");
    return usage.value_or(TenantUsage{});
  };
  set(2, 1);
  SubmitRequest first = Request("first");
  first.request_id = "r1";
  Submit(first);
  Submit("second");
  EXPECT_EQ(Outcome(store().Submit(Request("third"), now())), "QUOTA_QUEUED");
  EXPECT_FALSE(store().Submit(first, now())->created) << "a repeat is not refused";
  SubmitRequest others = Request("theirs");
  others.key.tenant = "other";
  Advance(Seconds(1));
  Submit(others);

  std::string session = Register("w1");
  LeaseToken lease = Acquire(session);
  EXPECT_EQ(lease.job, Key("first"));
  Submit("third");
  EXPECT_EQ(Acquire(session).job, others.key) << "acme runs its one job, the others go on";
  EXPECT_EQ(TryAcquire(session), std::nullopt);
  Reopen();
  EXPECT_EQ(TryAcquire(session), std::nullopt);
  Advance(Seconds(5));
  Sweep();
  EXPECT_EQ(Get("second").state_reason,
            "waiting: the tenant runs as many jobs as its quota allows");
  TenantUsage usage = set(2, 1);
  EXPECT_EQ(usage.queued, 2);
  EXPECT_EQ(usage.running, 1);
  EXPECT_EQ(Complete(lease), "OK");
  EXPECT_EQ(Acquire(session).job, Key("second"));
  set(0, 0);
  EXPECT_EQ(Acquire(session).job, Key("third"));
  Submit("fourth");
  Submit("fifth");
  Submit("sixth");
}

TEST_P(JobStoreSuite, AQuotaOfSubmitsAMinute) {
  ASSERT_EQ(Outcome(store().SetQuota({.tenant = "acme", .max_submits_per_minute = 2})), "OK");
  SubmitRequest first = Request("first");
  first.request_id = "r1";
  Submit(first);
  Submit("second");
  const auto refused = store().Submit(Request("third"), now());
  EXPECT_EQ(Outcome(refused), "QUOTA_SUBMIT_RATE");
  EXPECT_EQ(RetryAfterOf(refused.status()), Duration(Seconds(30)));
  EXPECT_FALSE(store().Submit(first, now())->created) << "a repeat is free";
  SubmitRequest others = Request("theirs");
  others.key.tenant = "other";
  Submit(others);

  Advance(Seconds(30));
  Reopen();
  Submit("third");
  EXPECT_EQ(Outcome(store().Submit(Request("fourth"), now())), "QUOTA_SUBMIT_RATE");
  ASSERT_EQ(Outcome(store().Cancel({Key("third"), "", ""}, now())), "OK");
  EXPECT_EQ(Outcome(store().Retry({.key = Key("third")}, now())), "QUOTA_SUBMIT_RATE");
  Advance(Seconds(3600));
  EXPECT_EQ(Outcome(store().Retry({.key = Key("third")}, now())), "OK");
  Submit("fourth");
  EXPECT_EQ(Outcome(store().Submit(Request("fifth"), now())), "QUOTA_SUBMIT_RATE")
      << "an hour without submits saves no more than a minute's";
  ASSERT_EQ(Outcome(store().SetQuota({.tenant = "acme"})), "OK");
  Submit("fifth");
}

TEST_P(JobStoreSuite, AQuotaOfStoredBytes) {
  const TenantQuota quota{.tenant = "acme", .max_stored_bytes = 1500, .max_watches = 9};
  ASSERT_EQ(Outcome(store().SetQuota(quota)), "OK");
  const std::string session = Register("w1");
  Submit("first");
  Submit("second");
  EXPECT_EQ(Complete(Acquire(session)), "OK");  // 1000 bytes
  EXPECT_EQ(*store().ArtifactBytes("acme"), 1000);
  EXPECT_EQ(*store().ArtifactBytes("other"), 0);
  SubmitRequest third = Request("third");
  third.upload_bytes = 500;
  const auto refused = store().Submit(third, now());
  EXPECT_EQ(Outcome(refused), "QUOTA_STORED_BYTES");
  EXPECT_TRUE(RetryAfterOf(refused.status()).has_value());
  third.upload_bytes = 499;
  Submit(third);
  EXPECT_EQ(Complete(Acquire(session)), "OK") << "what runs keeps its artifact";
  EXPECT_EQ(Outcome(store().Submit(Request("fourth"), now())), "QUOTA_STORED_BYTES");
  Reopen();
  EXPECT_EQ(store().Quota("acme")->max_stored_bytes, 1500);
  EXPECT_EQ(store().Quota("acme")->max_watches, 9);
  EXPECT_EQ(store().Quota("other")->max_stored_bytes, 0);
  const TenantUsage usage = *store().Usage("acme");
  EXPECT_EQ(usage.quota.max_stored_bytes, 1500);
  EXPECT_EQ(usage.quota.max_watches, 9);
  EXPECT_EQ(usage.artifact_bytes, 2000);
  EXPECT_EQ(usage.queued, 1);
  EXPECT_EQ(usage.running, 0);
  EXPECT_EQ(store().Usage("other")->quota.max_watches, 0);
  EXPECT_EQ(store().SetQuota(quota)->artifact_bytes, 2000);
  ASSERT_EQ(Outcome(store().Delete({Key("first"), ""}, now())), "OK");
  Submit("fourth");
}

TEST_P(JobStoreSuite, ListWorkersTellsWhoLives) {
  std::string session = Register("w1");
  Register("w2");
  Submit("job-one");
  Acquire(session);
  Advance(Seconds(20));
  ASSERT_EQ(Outcome(store().Heartbeat({session}, now())), "OK");
  Advance(Seconds(20));
  auto workers = store().ListWorkers("", 100, now());
  ASSERT_EQ(workers->size(), 2u);
  EXPECT_TRUE(workers->at(0).live);
  EXPECT_EQ(workers->at(0).jobs.size(), 1u);
  EXPECT_EQ(workers->at(0).info.slots(), 2);
  EXPECT_FALSE(workers->at(1).live);
  auto stats = store().Stats(now());
  EXPECT_EQ(stats->known_workers, 2);
  EXPECT_EQ(stats->live_workers, 1);
  EXPECT_EQ(stats->total_slots, 2);
  EXPECT_EQ(stats->busy_slots, 1);
}

TEST_P(JobStoreSuite, ListWorkersGoesOnAfterAnId) {
  for (const char* id : {"w3", "w1", "w5", "w2", "w4"}) Register(id);
  Submit("job-one");
  Submit("job-two");
  Acquire(Register("w2"));
  Acquire(Register("w4"));
  const auto ids = [&](const std::string& after, int limit) {
    std::vector<std::string> found;
    const auto workers = store().ListWorkers(after, limit, now());
    EXPECT_EQ(Outcome(workers), "OK");
    for (const Worker& worker : *workers) {
      found.push_back(worker.info.worker_id());
      const bool busy = found.back() == "w2" || found.back() == "w4";
      EXPECT_EQ(worker.jobs.size(), busy ? 1u : 0u) << found.back();
    }
    return found;
  };
  EXPECT_EQ(ids("", 2), (std::vector<std::string>{"w1", "w2"}));
  EXPECT_EQ(ids("w2", 2), (std::vector<std::string>{"w3", "w4"}));
  EXPECT_EQ(ids("w4", 2), (std::vector<std::string>{"w5"}));
  EXPECT_EQ(ids("w25", 1), (std::vector<std::string>{"w3"})) << "one that is gone";
  EXPECT_TRUE(ids("w5", 2).empty());
}

// A name is used again, and epochs begin at 1 again: what the first job's attempt and its reader
// still say is not about the second.
TEST_P(JobStoreSuite, AJobOfAUsedNameIsAnotherOne) {
  const std::string session = Register("w1");
  Submit("job-one");
  const LeaseToken old = Acquire(session);
  ASSERT_EQ(Outcome(store().Fail(Failure(old, v1::FAILURE_CLASS_USER), now())), "OK");
  const std::string old_etag = EtagOf(Get("job-one"));
  ASSERT_EQ(Outcome(store().Delete({Key("job-one"), old_etag}, now())), "OK");
  Submit("job-one");
  const LeaseToken lease = Acquire(session);
  ASSERT_EQ(lease.epoch, old.epoch);

  const BeatReply lost = SendBeat(old);
  EXPECT_EQ(lost.directive, v1::DIRECTIVE_LOST);
  EXPECT_EQ(lost.uid, old.uid);
  EXPECT_EQ(Outcome(store().CommitCheckpoint({old, {}, {}}, now())), "LEASE_LOST");
  EXPECT_EQ(Complete(old), "LEASE_LOST");
  EXPECT_EQ(Outcome(store().Fail(Failure(old), now())), "LEASE_LOST");
  EXPECT_EQ(Outcome(store().Release(old, "", now())), "LEASE_LOST");
  EXPECT_EQ(StateOf("job-one"), JobState::kRunning);
  EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_CONTINUE);

  EXPECT_EQ(Complete(lease), "OK");
  EXPECT_EQ(Complete(lease), "OK") << "a repeat";
  EXPECT_EQ(Complete(old), "LEASE_LOST")
      << "no repeat, though name, epoch and manifest are the same";
  EXPECT_EQ(Outcome(store().Delete({Key("job-one"), old_etag}, now())), "ETAG_MISMATCH");
}

// A worker of before this was told apart.
TEST_P(JobStoreSuite, ALeaseWithoutAUidIsNotCompared) {
  Submit("job-one");
  LeaseToken lease = Acquire(Register("w1"));
  lease.uid.clear();
  EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_CONTINUE);
  EXPECT_EQ(Complete(lease), "OK");
  EXPECT_EQ(Complete(lease), "OK");
}

}  // namespace quantry::server
