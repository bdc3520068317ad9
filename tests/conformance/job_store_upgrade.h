#pragma once

#include <algorithm>
#include <cctype>
#include <map>
#include <string>

#include "tests/conformance/job_store_invariants.h"

// What a database of an older schema must still do: an implementation's test
// fills a store, brings its rows into the first schema, migrates and looks.
namespace quantry::server {

class UpgradeCase {
 public:
  // A job in each state, with labels, events, a checkpoint and an artifact; one
  // worker holds two leases.
  static void Fill(JobStore& store) {
    v1::WorkerInfo worker;
    worker.set_worker_id("w");
    worker.set_incarnation("i");
    worker.set_slots(8);
    worker.add_methods("rtn");
    ASSERT_EQ(Outcome(store.RegisterWorker(worker, kSession, kNow)), "OK");
    for (const char* id : {"succeeded", "failed", "running", "cancelling"}) {
      Submit(store, id);
      ASSERT_EQ(Acquired(store), id);
    }
    for (const char* id : {"queued", "cancelled"}) Submit(store, id);
    ASSERT_EQ(Outcome(store.Complete(Completion("succeeded", 1), kNow)), "OK");
    FailRequest failure;
    failure.lease = Lease("failed", 1);
    failure.error.set_failure_class(v1::FAILURE_CLASS_USER);
    failure.error.set_reason("SOURCE_MISSING");
    ASSERT_EQ(Outcome(store.Fail(failure, kNow)), "OK");
    for (const char* id : {"cancelled", "cancelling"}) {
      ASSERT_EQ(Outcome(store.Cancel({{"acme", id}, "", "why"}, kNow)), "OK");
    }
    CheckpointRequest checkpoint{.lease = Lease("running", 1), .checkpoint = {}, .events = {}};
    checkpoint.checkpoint.set_blocks_done(3);
    ASSERT_EQ(Outcome(store.CommitCheckpoint(checkpoint, kNow)), "OK");
  }

  static void ExpectEverythingWorks(JobStore& store) {
    ExpectAllThere(store);
    ExpectTurns(store);
    ExpectLeasesHeld(store);
    ExpectTheQueueGoesOn(store);
    ExpectOwnersCalls(store);
    const std::map<JobState, int64_t> counted = {
        {JobState::kQueued, 1},    {JobState::kRunning, 2}, {JobState::kCancelling, 0},
        {JobState::kSucceeded, 2}, {JobState::kFailed, 0},  {JobState::kCancelled, 2}};
    EXPECT_EQ(store.Stats(kNow)->jobs, counted);
  }

 private:
  static constexpr Time kNow = Time(std::chrono::hours(480'000));
  static constexpr const char* kSession = "session";

  static SubmitRequest Request(const std::string& id, const std::string& tenant = "acme") {
    SubmitRequest request;
    request.key = {tenant, id};
    request.uid = NewUuid4();
    request.request_id = "request of " + id;
    request.request_hash = "hash";
    request.labels = {{"name", id}};
    request.spec.mutable_method()->mutable_rtn();
    return request;
  }
  static void Submit(JobStore& store, const std::string& id) {
    ASSERT_EQ(Outcome(store.Submit(Request(id), kNow)), "OK");
  }
  static std::string Acquired(JobStore& store) {
    const auto grant = store.Acquire({kSession, NewUuid4()}, kNow);
    EXPECT_EQ(Outcome(grant), "OK");
    return grant.ok() && *grant ? (*grant)->job.key.id : "nothing";
  }
  static LeaseToken Lease(const std::string& id, int64_t epoch) {
    return {kSession, {"acme", id}, epoch};
  }
  static CompleteRequest Completion(const std::string& id, int64_t epoch) {
    CompleteRequest request;
    request.lease = Lease(id, epoch);
    request.manifest_sha256 = "sha of " + id;
    request.total_bytes = 1000;
    request.file_count = 3;
    request.artifact_uri = "file:///artifacts/" + id;
    return request;
  }

  static void ExpectAllThere(JobStore& store) {
    ListQuery query;
    query.tenant = "acme";
    const auto page = store.List(query);
    ASSERT_EQ(Outcome(page), "OK");
    EXPECT_EQ(page->jobs.size(), std::size(kAllJobStates));
    for (const Job& job : page->jobs) {
      std::string state(JobStateName(job.state));
      std::transform(state.begin(), state.end(), state.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      EXPECT_EQ(job.key.id, state);
      EXPECT_EQ(job.labels.at("name"), state);
      CheckFields(job);
      CheckHistory(job, store.Events(job.key, 0, 100)->events);
    }
    query.states = {JobState::kRunning};
    query.labels = {{"name", "running"}};
    query.method = "rtn";
    EXPECT_EQ(store.List(query)->jobs.size(), 1u);
    ASSERT_EQ(store.ListArtifacts("acme", 10, std::nullopt)->artifacts.size(), 1u);
    EXPECT_EQ(store.ArtifactBytes("acme").value(), 1000);
  }

  // What runs since before counts: it is another tenant's turn.
  static void ExpectTurns(JobStore& store) {
    EXPECT_TRUE(store.Submit(Request("new"), kNow)->created);
    EXPECT_TRUE(store.Submit(Request("guest", "zed"), kNow)->created);
    EXPECT_EQ(Acquired(store), "guest");
  }

  static void ExpectLeasesHeld(JobStore& store) {
    const auto beat = [](const std::string& id) { return Beat{{"acme", id}, 1, {}, {}}; };
    const auto reply = store.Heartbeat({kSession, {beat("running"), beat("cancelling")}}, kNow);
    ASSERT_EQ(Outcome(reply), "OK");
    EXPECT_EQ(reply->jobs.at(0).directive, v1::DIRECTIVE_CONTINUE);
    EXPECT_EQ(reply->jobs.at(1).directive, v1::DIRECTIVE_CANCEL);
    EXPECT_EQ(Outcome(store.Complete(Completion("running", 2), kNow)), "LEASE_LOST");
    EXPECT_EQ(Outcome(store.Complete(Completion("running", 1), kNow)), "OK");
    FailRequest cancelled;
    cancelled.lease = Lease("cancelling", 1);
    cancelled.cancelled = true;
    EXPECT_EQ(store.Fail(cancelled, kNow).value(), JobState::kCancelled);
  }

  static void ExpectTheQueueGoesOn(JobStore& store) {
    EXPECT_EQ(Acquired(store), "queued");
    EXPECT_FALSE(store.Submit(Request("queued"), kNow)->created) << "the same request again";
    EXPECT_EQ(Outcome(store.Retry({.key = {"acme", "failed"}}, kNow)), "OK");
    EXPECT_EQ(Outcome(store.Sweep(kNow)), "OK");
  }

  static void ExpectOwnersCalls(JobStore& store) {
    EXPECT_EQ(Outcome(store.Delete({{"acme", "succeeded"}, ""}, kNow)), "OK");
    EXPECT_EQ(store.ListGarbage(10)->size(), 1u);
    EXPECT_EQ(store.SetQuota({.tenant = "acme", .max_running = 1})->running, 1);
    EXPECT_EQ(Acquired(store), "nothing") << "one runs";
    EXPECT_EQ(Outcome(store.SetQuota({.tenant = "acme"})), "OK");
    EXPECT_EQ(Acquired(store), "failed") << "submitted before the new one";
    EXPECT_EQ(store.Get({"acme", "failed"})->epoch, 2);
    EXPECT_EQ(store.ListWorkers("", 10, kNow)->at(0).jobs.size(), 3u);
    EXPECT_EQ(Outcome(store.Complete(Completion("queued", 1), kNow)), "OK");
  }
};

}  // namespace quantry::server
