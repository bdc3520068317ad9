#pragma once

#include <set>
#include <thread>

#include "server/jobs/rules.h"
#include "tests/conformance/job_store_fixture.h"

// Submit, Get, List, Update, Cancel, Delete, Events.
namespace quantry::server {

TEST_P(JobStoreSuite, SubmitStoresEverything) {
  SubmitRequest request = Request("job-one", "awq");
  request.display_name = "My job";
  request.labels = {{"team", "ml"}, {"", "empty key"}};
  request.priority = 5;
  request.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  request.expire_time = now() + Seconds(60);
  auto result = store().Submit(request, now());
  ASSERT_EQ(Outcome(result), "OK");
  EXPECT_TRUE(result->created);
  for (const Job& job : {result->job, Get("job-one")}) {
    EXPECT_EQ(job.key, request.key);
    EXPECT_EQ(job.uid, request.uid);
    EXPECT_EQ(job.display_name, "My job");
    EXPECT_EQ(job.labels, request.labels);
    EXPECT_EQ(job.spec.SerializeAsString(), request.spec.SerializeAsString());
    EXPECT_EQ(job.spec_digest, "digest");
    EXPECT_EQ(job.priority, 5);
    EXPECT_EQ(job.traceparent, request.traceparent);
    EXPECT_EQ(job.state, JobState::kQueued);
    EXPECT_EQ(job.epoch, 0);
    EXPECT_EQ(job.create_time, now());
    EXPECT_EQ(job.expire_time, request.expire_time);
    EXPECT_EQ(job.start_time, std::nullopt);
    EXPECT_EQ(job.last_sequence, 1);
  }
}

TEST_P(JobStoreSuite, ASubmitThatMayOnlyRepeatMakesNoJob) {
  SubmitRequest request = Request("job-one");
  request.request_id = "r1";
  request.repeat_only = true;
  EXPECT_EQ(Outcome(store().Submit(request, now())), "JOB_NOT_FOUND");
  request.repeat_only = false;
  const Job first = Submit(request);
  request.repeat_only = true;
  auto again = store().Submit(request, now());
  ASSERT_EQ(Outcome(again), "OK");
  EXPECT_FALSE(again->created);
  EXPECT_EQ(again->job.uid, first.uid);
}

TEST_P(JobStoreSuite, SubmitRepeatedWithTheSamePayloadReturnsTheFirstJob) {
  SubmitRequest request = Request("job-one");
  request.request_id = "r1";
  Job first = Submit(request);
  SubmitRequest repeat = request;
  repeat.uid = NewUuid4();
  repeat.key = Key("chosen-by-the-server-2");
  auto again = store().Submit(repeat, now() + Seconds(9));
  ASSERT_EQ(Outcome(again), "OK");
  EXPECT_FALSE(again->created);
  EXPECT_EQ(again->job.uid, first.uid);
  EXPECT_EQ(again->job.key, first.key);
}

TEST_P(JobStoreSuite, SubmitRefusals) {
  SubmitRequest request = Request("job-one");
  request.request_id = "r1";
  Submit(request);
  SubmitRequest other = Request("job-two");
  other.request_id = "r1";
  other.request_hash = "another payload";
  EXPECT_EQ(Outcome(store().Submit(other, now())), "REQUEST_ID_REUSED");
  EXPECT_EQ(Outcome(store().Get(Key("job-two"))), "JOB_NOT_FOUND");
  EXPECT_EQ(Outcome(store().Submit(Request("job-one"), now())), "JOB_ID_TAKEN");
  SubmitRequest elsewhere = Request("job-one");
  elsewhere.key.tenant = "other";
  elsewhere.request_id = "r1";
  elsewhere.request_hash = "another payload";
  EXPECT_EQ(Outcome(store().Submit(elsewhere, now())), "OK");
}

TEST_P(JobStoreSuite, SixtyFourParallelSubmitsWithOneRequestIdMakeOneJob) {
  std::vector<absl::StatusOr<SubmitResult>> results(64, absl::UnknownError("not run"));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < results.size(); ++i) {
    threads.emplace_back([&, i] {
      SubmitRequest request = Request("job-" + std::to_string(i));
      request.request_id = "r1";
      results[i] = store().Submit(request, now());
    });
  }
  for (std::thread& thread : threads) thread.join();
  int created = 0;
  for (const auto& result : results) {
    ASSERT_EQ(Outcome(result), "OK");
    created += result->created;
    EXPECT_EQ(result->job.uid, results[0]->job.uid);
  }
  EXPECT_EQ(created, 1);
}

TEST_P(JobStoreSuite, UnknownJobsAreNotFound) {
  Submit("job-one");
  JobKey other{"other", "job-one"};
  EXPECT_EQ(Outcome(store().Get(other)), "JOB_NOT_FOUND");
  EXPECT_EQ(Outcome(store().Events(other, 0, 10)), "JOB_NOT_FOUND");
  UpdateRequest update;
  update.key = other;
  EXPECT_EQ(Outcome(store().Update(update, now())), "JOB_NOT_FOUND");
  EXPECT_EQ(Outcome(store().Cancel({other, "", ""}, now())), "JOB_NOT_FOUND");
  EXPECT_EQ(Outcome(store().Delete({other, ""}, now())), "JOB_NOT_FOUND");
  EXPECT_EQ(Outcome(store().GetArtifact("acme", NewUuid4())), "ARTIFACT_NOT_FOUND");
}

TEST_P(JobStoreSuite, ListPagesNewestFirstWithoutGapsOrRepeats) {
  for (int i = 0; i < 7; ++i) {
    Submit("job-" + std::to_string(i));
    if (i % 2 == 0) Advance(Seconds(1));  // pairs share a time: the uid decides
  }
  std::vector<std::string> seen;
  ListQuery query;
  query.tenant = "acme";
  query.limit = 2;
  std::optional<Cursor> before;
  for (int pages = 0; pages < 4; ++pages) {
    auto page = store().List(query);
    ASSERT_EQ(Outcome(page), "OK");
    for (const Job& job : page->jobs) {
      Cursor cursor{job.create_time, job.uid};
      if (before) {
        EXPECT_TRUE(std::pair(cursor.create_time, cursor.uid) <
                    std::pair(before->create_time, before->uid));
      }
      before = cursor;
      seen.push_back(job.key.id);
    }
    EXPECT_EQ(page->next.has_value(), pages < 3);
    query.after = page->next;
    Submit("late-" + std::to_string(pages));  // must not disturb later pages
  }
  EXPECT_EQ(seen.size(), 7u);
}

TEST_P(JobStoreSuite, APageHoldsNoMoreThanItMay) {
  SubmitRequest large = Request("job-0");
  large.spec.mutable_model()->set_local_path("/" + std::string(1000, 'm'));
  const auto spec_bytes = static_cast<int64_t>(large.spec.ByteSizeLong());
  for (int i = 0; i < 7; ++i) {
    large = Request("job-" + std::to_string(i));
    large.spec.mutable_model()->set_local_path("/" + std::string(1000, 'm'));
    Submit(large);
  }
  ListQuery query;
  query.tenant = "acme";
  query.max_spec_bytes = spec_bytes * 5 / 2;  // the third job is the last that begins below it
  std::vector<size_t> pages;
  std::set<std::string> seen;
  do {
    const auto page = store().List(query);
    ASSERT_EQ(Outcome(page), "OK");
    pages.push_back(page->jobs.size());
    for (const Job& job : page->jobs) seen.insert(job.key.id);
    query.after = page->next;
  } while (query.after);
  EXPECT_EQ(pages, (std::vector<size_t>{3, 3, 1}));
  EXPECT_EQ(seen.size(), 7u);
}

TEST_P(JobStoreSuite, ListFilters) {
  SubmitRequest labelled = Request("labelled", "awq");
  labelled.labels = {{"team", "ml"}, {"it's", "\"odd\" %_' OR 1=1"}};
  Submit(labelled);
  Submit("cancelled");
  ASSERT_EQ(Outcome(store().Cancel({Key("cancelled"), "", ""}, now())), "OK");
  Submit("queued");
  auto ids = [&](const ListQuery& query) {
    auto page = store().List(query);
    EXPECT_EQ(Outcome(page), "OK");
    std::set<std::string> found;
    for (const Job& job : page->jobs) found.insert(job.key.id);
    return found;
  };
  using Ids = std::set<std::string>;
  ListQuery query;
  query.tenant = "acme";
  EXPECT_EQ(ids(query), (Ids{"labelled", "cancelled", "queued"}));
  query.states = {JobState::kQueued};
  EXPECT_EQ(ids(query), (Ids{"labelled", "queued"}));
  query.states = {JobState::kCancelled, JobState::kFailed};
  EXPECT_EQ(ids(query), Ids{"cancelled"});
  query.states.clear();
  query.labels = labelled.labels;
  EXPECT_EQ(ids(query), Ids{"labelled"});
  query.labels["team"] = "other";
  EXPECT_EQ(ids(query), Ids{});
  query.labels.clear();
  query.method = "awq";
  EXPECT_EQ(ids(query), Ids{"labelled"});
  query.tenant = "other";
  EXPECT_EQ(ids(query), Ids{});
}

TEST_P(JobStoreSuite, UpdateChangesOnlyWhatItNames) {
  SubmitRequest request = Request("job-one");
  request.labels = {{"a", "1"}};
  Job before = Submit(request);
  Advance(Seconds(1));
  UpdateRequest update;
  update.key = Key("job-one");
  update.etag = EtagOf(before);
  update.labels = {{{"b", "2"}}};
  auto after = store().Update(update, now());
  ASSERT_EQ(Outcome(after), "OK");
  EXPECT_EQ(after->labels, (std::map<std::string, std::string>{{"b", "2"}}));
  EXPECT_EQ(after->priority, before.priority);
  EXPECT_EQ(after->expire_time, std::nullopt);
  EXPECT_EQ(after->update_time, now());
  EXPECT_NE(EtagOf(*after), EtagOf(before));
  EXPECT_EQ(Outcome(store().Update(update, now())), "ETAG_MISMATCH");
  update.etag = EtagOf(*after);
  update.labels = std::nullopt;
  update.expire_time = now() + Seconds(5);
  EXPECT_EQ(store().Update(update, now())->expire_time, now() + Seconds(5));
  update.etag = "";
  update.expire_time.emplace(std::nullopt);
  EXPECT_EQ(store().Update(update, now())->expire_time, std::nullopt);
  EXPECT_EQ(Get("job-one").labels.size(), 1u);
}

TEST_P(JobStoreSuite, CancelInEachState) {
  std::string session = Register("w1");
  Submit("queued");
  ASSERT_EQ(store().Cancel({Key("queued"), "", "not needed"}, now())->state, JobState::kCancelled);
  EXPECT_EQ(Get("queued").state_reason, "not needed");
  EXPECT_EQ(TryAcquire(session), std::nullopt);
  int64_t events = Get("queued").last_sequence;
  EXPECT_EQ(store().Cancel({Key("queued"), "", ""}, now())->state, JobState::kCancelled);
  EXPECT_EQ(Get("queued").last_sequence, events) << "a repeat must not add an event";

  Submit("running");
  LeaseToken lease = Acquire(session);
  EXPECT_EQ(Outcome(store().Cancel({Key("running"), "\"0\"", ""}, now())), "ETAG_MISMATCH");
  EXPECT_EQ(store().Cancel({Key("running"), "", ""}, now())->state, JobState::kCancelling);
  EXPECT_EQ(store().Cancel({Key("running"), "", ""}, now())->state, JobState::kCancelling);
  EXPECT_EQ(SendBeat(lease).directive, v1::DIRECTIVE_CANCEL);
  FailRequest stopped = Failure(lease);
  stopped.cancelled = true;
  EXPECT_EQ(store().Fail(stopped, now()).value(), JobState::kCancelled);
  EXPECT_EQ(StatesOf("running"), "QUEUED RUNNING CANCELLING CANCELLED");
  EXPECT_EQ(Get("running").user_failures, 0);

  Submit("succeeded");
  LeaseToken done = Acquire(session);
  ASSERT_EQ(Complete(done), "OK");
  EXPECT_EQ(Outcome(store().Cancel({Key("succeeded"), "", ""}, now())), "JOB_ALREADY_ENDED");
  EXPECT_EQ(StateOf("succeeded"), JobState::kSucceeded);
}

TEST_P(JobStoreSuite, DeleteRemovesEndedJobsOnly) {
  std::string session = Register("w1");
  Job job = Submit("job-one");
  EXPECT_EQ(Outcome(store().Delete({Key("job-one"), ""}, now())), "JOB_NOT_ENDED");
  LeaseToken lease = Acquire(session);
  EXPECT_EQ(Outcome(store().Delete({Key("job-one"), ""}, now())), "JOB_NOT_ENDED");
  ASSERT_EQ(Complete(lease), "OK");
  EXPECT_EQ(Outcome(store().Delete({Key("job-one"), EtagOf(job)}, now())), "ETAG_MISMATCH");
  auto deleted = store().Delete({Key("job-one"), ""}, now());
  ASSERT_EQ(Outcome(deleted), "OK");
  EXPECT_EQ(deleted->uid, job.uid);
  EXPECT_EQ(Outcome(store().Get(Key("job-one"))), "JOB_NOT_FOUND");
  EXPECT_EQ(Outcome(store().Events(Key("job-one"), 0, 10)), "JOB_NOT_FOUND");
  EXPECT_EQ(Outcome(store().GetArtifact("acme", job.uid)), "ARTIFACT_NOT_FOUND");
  EXPECT_EQ(Complete(lease), "LEASE_LOST");
  auto garbage = store().ListGarbage(10);
  ASSERT_EQ(garbage->size(), 1u);
  EXPECT_EQ(garbage->at(0).job_uid, job.uid);
  EXPECT_EQ(garbage->at(0).tenant, "acme");
  ASSERT_EQ(Outcome(store().ForgetGarbage(garbage->at(0))), "OK");
  EXPECT_TRUE(store().ListGarbage(10)->empty());
  const Job next = Submit("job-one");  // the id is free again, with a history of its own
  EXPECT_EQ(Get("job-one").last_sequence, 1);
  EXPECT_EQ(store().Events(Key("job-one"), 0, 10)->uid, next.uid);
  EXPECT_EQ(Get("job-one").epoch, 0);
}

TEST_P(JobStoreSuite, EventsPageBySequence) {
  std::string session = Register("w1");
  const std::string uid = Submit("job-one").uid;
  LeaseToken lease = Acquire(session);
  Beat beat = BeatOf(lease);
  for (int i = 0; i < 5; ++i) beat.events.events.push_back(LogEvent(std::to_string(i)));
  SendBeat(lease, beat);
  std::vector<int64_t> sequences;
  int64_t after = 0;
  while (true) {
    auto batch = store().Events(Key("job-one"), after, 3);
    ASSERT_EQ(Outcome(batch), "OK");
    EXPECT_EQ(batch->last_sequence, 7);
    EXPECT_EQ(batch->state, JobState::kRunning);
    EXPECT_EQ(batch->uid, uid);
    if (batch->events.empty()) break;
    for (const auto& event : batch->events) sequences.push_back(event.sequence());
    after = sequences.back();
  }
  EXPECT_EQ(sequences, (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7}));
  EXPECT_TRUE(store().Events(Key("job-one"), 99, 3)->events.empty());
}

TEST_P(JobStoreSuite, RetryGoesOnFromTheCheckpoint) {
  std::string session = Register("w1");
  Submit("job-one");
  LeaseToken lease = Acquire(session);
  SendBeat(lease, 5);
  CheckpointRequest checkpoint{lease, {}, {}};
  checkpoint.checkpoint.set_blocks_done(3);
  ASSERT_EQ(Outcome(store().CommitCheckpoint(checkpoint, now())), "OK");
  ASSERT_EQ(store().Fail(Failure(lease, v1::FAILURE_CLASS_USER), now()).value(), JobState::kFailed);
  Advance(Seconds(10));
  auto job = store().Retry({Key("job-one"), "r1"}, now());
  ASSERT_EQ(Outcome(job), "OK");
  EXPECT_EQ(job->state, JobState::kQueued);
  EXPECT_EQ(job->state_reason, "retried");
  EXPECT_EQ(job->user_failures, 0);
  EXPECT_EQ(job->epoch, 1);
  EXPECT_EQ(job->end_time, std::nullopt);
  EXPECT_EQ(job->error.code(), 0);
  EXPECT_EQ(job->progress.steps_done(), 0);
  // A worker that still holds the old attempt has lost it.
  EXPECT_EQ(Complete(lease), "LEASE_LOST");
  auto grant = TryAcquire(session);
  ASSERT_TRUE(grant && grant->resume);
  EXPECT_EQ(grant->job.epoch, 2);
  EXPECT_EQ(grant->resume->blocks_done(), 3);
  EXPECT_EQ(Complete(lease), "LEASE_LOST");
  EXPECT_EQ(Complete({session, Key("job-one"), 2}), "OK");
  EXPECT_EQ(StatesOf("job-one"), "QUEUED RUNNING FAILED QUEUED RUNNING SUCCEEDED");
}

TEST_P(JobStoreSuite, RetryFromTheStartForgetsTheCheckpoint) {
  std::string session = Register("w1");
  Submit("job-one");
  LeaseToken lease = Acquire(session);
  ASSERT_EQ(Outcome(store().CommitCheckpoint({lease, {}, {}}, now())), "OK");
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  ASSERT_EQ(Outcome(store().Release(lease, "", now())), "OK");
  ASSERT_EQ(Outcome(store().Retry({.key = Key("job-one"), .from_start = true}, now())), "OK");
  auto grant = TryAcquire(session);
  ASSERT_TRUE(grant);
  EXPECT_FALSE(grant->resume);
}

TEST_P(JobStoreSuite, RetryIsIdempotentByRequestId) {
  std::string session = Register("w1");
  Submit("job-one");
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  Job retried = store().Retry({Key("job-one"), "r1"}, now()).value();
  EXPECT_EQ(store().Retry({Key("job-one"), "r1"}, now())->version, retried.version);
  EXPECT_EQ(Outcome(store().Retry({Key("job-one"), "r2"}, now())), "JOB_NOT_RETRYABLE");
  EXPECT_EQ(Outcome(store().Retry({Key("job-one"), ""}, now())), "JOB_NOT_RETRYABLE");
  Acquire(session);
  EXPECT_EQ(store().Retry({Key("job-one"), "r1"}, now())->state, JobState::kRunning);
}

TEST_P(JobStoreSuite, ALateRepeatOfARetryQueuesNothing) {
  const std::string first_etag = EtagOf(Submit("job-one"));
  const auto cancelled_after = [&](const std::string& retry) {
    ASSERT_EQ(Outcome(store().Retry({Key("job-one"), retry}, now())), "OK");
    ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  };
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  for (const char* retry : {"r1", "", "r2", "r3"}) cancelled_after(retry);
  Reopen();
  const Job cancelled = Get("job-one");
  for (const char* repeat : {"r1", "r2", "r3"}) {
    // With the etag of its first time.
    auto repeated = store().Retry({Key("job-one"), repeat, first_etag}, now());
    ASSERT_EQ(Outcome(repeated), "OK");
    EXPECT_EQ(repeated->state, JobState::kCancelled);
    EXPECT_EQ(repeated->version, cancelled.version);
  }
  // Another one, though its id begins like one that was.
  cancelled_after("r");
  // Another job of the name.
  ASSERT_EQ(Outcome(store().Delete({Key("job-one"), ""}, now())), "OK");
  Submit("job-one");
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  EXPECT_EQ(store().Retry({Key("job-one"), "r1"}, now())->state, JobState::kQueued);
}

TEST_P(JobStoreSuite, AJobKeepsTheRequestIdsOfAThousandRetries) {
  Submit("job-one");
  ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  // As long as many, and one that still fits.
  const std::vector<std::string> all = {std::string(kMaxRetryIdBytes - 2, 'r'), NewUuid4()};
  for (const std::string& retry : all) {
    ASSERT_EQ(Outcome(store().Retry({Key("job-one"), retry}, now())), "OK");
    ASSERT_EQ(Outcome(store().Cancel({Key("job-one"), "", ""}, now())), "OK");
  }
  for (const std::string& repeat : all) {
    EXPECT_EQ(store().Retry({Key("job-one"), repeat}, now())->state, JobState::kCancelled);
  }
  for (const std::string& another : {NewUuid4(), std::string()}) {
    EXPECT_EQ(Outcome(store().Retry({Key("job-one"), another}, now())), "JOB_NOT_RETRYABLE");
  }
}

TEST_P(JobStoreSuite, RetryOnlyWhereAnotherAttemptMakesSense) {
  EXPECT_EQ(Outcome(store().Retry({Key("none"), "r"}, now())), "JOB_NOT_FOUND");
  std::string session = Register("w1");
  Submit("job-one");
  EXPECT_EQ(Outcome(store().Retry({Key("job-one"), "r"}, now())), "JOB_NOT_RETRYABLE");
  LeaseToken lease = Acquire(session);
  EXPECT_EQ(Outcome(store().Retry({Key("job-one"), "r"}, now())), "JOB_NOT_RETRYABLE");
  ASSERT_EQ(Complete(lease), "OK");
  EXPECT_EQ(Outcome(store().Retry({Key("job-one"), "r"}, now())), "JOB_NOT_RETRYABLE");
  Submit("gated");
  CompleteRequest worse = Completion(Acquire(session));
  worse.result.set_quality_gate_failed(true);
  ASSERT_EQ(Outcome(store().Complete(worse, now())), "OK");
  EXPECT_EQ(Outcome(store().Retry({Key("gated"), "r"}, now())), "JOB_NOT_RETRYABLE");
  Submit("changed");
  Job cancelled = store().Cancel({Key("changed"), "", ""}, now()).value();
  EXPECT_EQ(Outcome(store().Retry({Key("changed"), "r", "\"99\""}, now())), "ETAG_MISMATCH");
  EXPECT_EQ(Outcome(store().Retry({Key("changed"), "r", EtagOf(cancelled)}, now())), "OK");
}

TEST_P(JobStoreSuite, ARetriedJobHasItsWholeBudgetAgain) {
  std::string session = Register("w1");
  SubmitRequest request = Request("job-one");
  request.spec.mutable_retry_policy()->set_max_attempts(2);
  request.spec.mutable_stop_limits()->mutable_max_pending()->set_seconds(100);
  Submit(request);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(store().Fail(Failure(AcquireAgain(session)), now()).value(), JobState::kQueued);
    EXPECT_EQ(store().Fail(Failure(AcquireAgain(session)), now()).value(), JobState::kFailed);
    ASSERT_EQ(Outcome(store().Retry({Key("job-one"), NewUuid4()}, now())), "OK");
  }
  Sweep();
  AdvanceSweeping(Seconds(100));
  EXPECT_EQ(Get("job-one").state_reason, "MAX_PENDING_EXCEEDED");
}

}  // namespace quantry::server
