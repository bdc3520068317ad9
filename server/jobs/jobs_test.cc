#include <gtest/gtest.h>

#include "server/jobs/job.h"
#include "server/jobs/policy.h"
#include "server/jobs/transitions.h"

namespace quantry::server {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

TEST(TransitionsTest, EndsAreFinalAndEveryStateCanBeReached) {
  for (JobState from : kAllJobStates) {
    bool left = false;
    bool reached = from == JobState::kQueued;
    for (JobState other : kAllJobStates) {
      left |= CanTransition(from, other);
      reached |= CanTransition(other, from);
    }
    EXPECT_EQ(left, !IsEnded(from)) << JobStateName(from);
    EXPECT_TRUE(reached) << JobStateName(from);
    EXPECT_FALSE(CanTransition(from, from)) << JobStateName(from);
  }
  EXPECT_FALSE(CanTransition(JobState::kCancelling, JobState::kSucceeded));
  EXPECT_FALSE(CanTransition(JobState::kCancelling, JobState::kQueued));
  EXPECT_FALSE(CanTransition(JobState::kQueued, JobState::kSucceeded));
  for (const Transition& row : AllowedTransitions()) {
    EXPECT_TRUE(CanTransition(row.from, row.to)) << row.cause;
  }
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

TEST(JobTest, EtagIsAQuotedVersion) {
  Job job;
  job.version = 12;
  EXPECT_EQ(EtagOf(job), "\"12\"");
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

}  // namespace
}  // namespace quantry::server
