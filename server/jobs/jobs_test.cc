#include <gtest/gtest.h>

#include <limits>

#include "common/errors.h"
#include "server/jobs/job.h"
#include "server/jobs/policy.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_retries.h"
#include "server/jobs/transitions.h"
#include "server/jobs/waiting.h"

namespace quantry::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

TEST(TransitionsTest, EveryStateCanBeReachedAndOnlySuccessIsFinal) {
  for (JobState from : kAllJobStates) {
    bool left = false;
    bool reached = from == JobState::kQueued;
    for (JobState other : kAllJobStates) {
      left |= CanTransition(from, other);
      reached |= CanTransition(other, from);
    }
    EXPECT_EQ(left, from != JobState::kSucceeded) << JobStateName(from);
    EXPECT_TRUE(reached) << JobStateName(from);
    EXPECT_FALSE(CanTransition(from, from)) << JobStateName(from);
  }
  EXPECT_FALSE(CanTransition(JobState::kCancelling, JobState::kSucceeded));
  EXPECT_FALSE(CanTransition(JobState::kCancelling, JobState::kQueued));
  EXPECT_FALSE(CanTransition(JobState::kFailed, JobState::kRunning));
  for (const Transition& row : AllowedTransitions()) {
    EXPECT_TRUE(CanTransition(row.from, row.to)) << row.cause;
  }
}

Worker LiveWorker(const std::string& id) {
  Worker worker;
  worker.info.set_worker_id(id);
  worker.info.add_methods("rtn");
  worker.info.set_host_memory_bytes(int64_t{4} << 30);
  worker.info.add_gpus()->set_memory_bytes(int64_t{16} << 30);
  worker.info.add_gpus()->set_memory_bytes(int64_t{8} << 30);
  worker.live = true;
  return worker;
}

TEST(WaitingTest, WhyNot) {
  const Worker able = LiveWorker("w1");
  Worker draining = able;
  draining.draining = true;
  Worker refusing = able;
  refusing.refusal = "no disk";
  const JobNeeds plain{.method = "rtn"};
  const struct {
    const char* name;
    JobNeeds needs;
    const Worker& worker;
    const char* why;
  } cases[] = {
      {"able", plain, able, ""},
      {"draining", plain, draining, "is draining"},
      {"refusing", plain, refusing, "takes no jobs: no disk"},
      {"method", {.method = "awq"}, able, "does not offer the method awq"},
      {"host memory",
       {.method = "rtn", .host_memory_bytes = int64_t{5} << 30},
       able,
       "has 4096 MiB of memory, the job asks for 5120 MiB"},
      {"one GPU of 16", {"rtn", 1, int64_t{16} << 30, 0}, able, ""},
      {"two GPUs of 16",
       {"rtn", 2, int64_t{16} << 30, 0},
       able,
       "has GPUs of 8192 MiB, the job asks for 16384 MiB"},
      {"three GPUs", {"rtn", 3, 0, 0}, able, "has 2 GPUs, the job asks for 3"},
  };
  for (const auto& c : cases) EXPECT_EQ(WhyNot(c.needs, c.worker), c.why) << c.name;
}

TEST(WaitingTest, OneAbleWorkerIsEnough) {
  std::vector<Worker> live;
  EXPECT_EQ(WhyWaiting({.method = "awq"}, live), "waiting: no worker is connected");
  for (const char* id : {"a", "b", "c", "d", "e"}) live.push_back(LiveWorker(id));
  const std::string why = WhyWaiting({.method = "awq"}, live);
  EXPECT_EQ(why, "waiting: each worker does not offer the method awq");
  EXPECT_TRUE(IsWaitingReason(why));
  EXPECT_FALSE(IsWaitingReason("WORKER_LOST"));
  live[3].draining = true;
  live[1].refusal = "no disk";
  EXPECT_EQ(WhyWaiting({.method = "awq"}, live),
            "waiting: a worker does not offer the method awq; another is draining; another takes "
            "no jobs: no disk");
  live[0].refusal = "no memory";
  EXPECT_EQ(WhyWaiting({.method = "awq"}, live),
            "waiting: a worker does not offer the method awq; another is draining; another takes "
            "no jobs: no disk; others have other reasons");
  live.back().info.add_methods("awq");
  EXPECT_EQ(WhyWaiting({.method = "awq"}, live), "");
}

TEST(JobStateTest, ProtoRoundTrip) {
  for (JobState state : kAllJobStates) {
    EXPECT_EQ(FromProto(ToProto(state)), state);
    EXPECT_EQ("JOB_STATE_" + std::string(JobStateName(state)), v1::JobState_Name(ToProto(state)));
  }
  EXPECT_EQ(FromProto(v1::JOB_STATE_UNSPECIFIED), std::nullopt);
  EXPECT_EQ(FromProto(static_cast<v1::JobState>(99)), std::nullopt);
}

TEST(JobTest, MethodName) {
  v1::Method method;
  EXPECT_EQ(MethodName(method), "");
  method.mutable_awq();
  EXPECT_EQ(MethodName(method), "awq");
}

TEST(JobTest, EtagIsOfTheJobAndItsVersion) {
  Job job;
  job.uid = "0c1f3a52-8a7e-4d7c-9d8e-0123456789ab";
  job.version = 12;
  EXPECT_EQ(EtagOf(job), "\"0c1f3a52-12\"");
}

TEST(BackoffTest, DoublesUpToTheCapWithJitter) {
  JobPolicy policy;
  const struct {
    int failures;
    Duration ceiling;
  } cases[] = {{1, seconds(1)},   {2, seconds(2)},  {3, seconds(4)},
               {9, seconds(256)}, {10, minutes(5)}, {1000000, minutes(5)}};
  for (const auto& c : cases) {
    uint64_t width = static_cast<uint64_t>((c.ceiling - milliseconds(500)).count());
    EXPECT_EQ(Backoff(policy, c.failures, 0), milliseconds(500)) << c.failures;
    EXPECT_EQ(Backoff(policy, c.failures, width), c.ceiling) << c.failures;
    EXPECT_EQ(Backoff(policy, c.failures, width + 1), milliseconds(500)) << c.failures;
    EXPECT_LE(Backoff(policy, c.failures, ~uint64_t{0}), c.ceiling) << c.failures;
  }
}

TEST(SubmitRateTest, TheBucketFillsEvenlyAndOverflows) {
  const Time now = FromUnixMicros(1'000'000'000'000);
  const TenantQuota quota{.tenant = "acme", .max_submits_per_minute = 3};
  const struct {
    const char* name;
    Time full_at;
    std::optional<Duration> wait;
    Time next;
  } cases[] = {
      {"never used", Time(), std::nullopt, now + seconds(20)},
      {"full", now, std::nullopt, now + seconds(20)},
      {"one left", now + seconds(40), std::nullopt, now + seconds(60)},
      {"just empty", now + seconds(41), seconds(1), {}},
      {"empty", now + seconds(60), seconds(20), {}},
      {"the clock stepped back by a day", now + std::chrono::hours(24), seconds(20), {}},
  };
  for (const auto& c : cases) {
    const auto next = TakeSubmit(quota, c.full_at, now);
    EXPECT_EQ(RetryAfterOf(next.status()), c.wait) << c.name;
    if (c.wait) continue;
    EXPECT_EQ(next.value(), c.next) << c.name;
  }
}

TEST(StoredBytesTest, WhatFits) {
  const TenantQuota quota{.tenant = "acme", .max_stored_bytes = 100};
  EXPECT_TRUE(CheckStoredBytes({}, int64_t{1} << 60, 1).ok()) << "no limit";
  EXPECT_TRUE(CheckStoredBytes(quota, 99, 0).ok());
  EXPECT_FALSE(CheckStoredBytes(quota, 100, 0).ok());
  EXPECT_TRUE(CheckStoredBytes(quota, 60, 40).ok());
  EXPECT_FALSE(CheckStoredBytes(quota, 60, 41).ok());
  EXPECT_FALSE(CheckStoredBytes(quota, 1, std::numeric_limits<int64_t>::max()).ok());
}

TEST(RetryIdsTest, WhichAreAmongThem) {
  // Servers that kept one alone wrote it without a line break.
  for (const char* ids : {"first", "\nfirst", "first\nsecond", "\nzeroth\nfirst\nsecond"}) {
    EXPECT_TRUE(sql::IsAmong(ids, "first")) << ids;
    for (const char* other : {"", "fir", "irst", "third"}) {
      EXPECT_FALSE(sql::IsAmong(ids, other)) << ids << ", " << other;
    }
  }
  EXPECT_FALSE(sql::IsAmong("", ""));
  EXPECT_FALSE(sql::IsAmong("", "first"));
}

}  // namespace
}  // namespace quantry::server
