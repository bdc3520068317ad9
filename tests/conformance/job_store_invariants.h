#pragma once

#include "server/jobs/transitions.h"
#include "tests/conformance/job_store_fixture.h"

namespace quantry::server {

// Sequences 1, 2, 3, ...; every state change starts where the one before
// ended and is in the table; the last one is the job's state.
inline void CheckHistory(const Job& job, const std::vector<v1::JobEvent>& events) {
  int64_t sequence = 0;
  std::optional<JobState> state;
  int64_t epoch = 0;
  for (const v1::JobEvent& event : events) {
    EXPECT_EQ(event.sequence(), ++sequence) << job.key.id;
    if (event.epoch() != 0) {
      EXPECT_GE(event.epoch(), epoch) << job.key.id;
      epoch = event.epoch();
    }
    if (!event.has_state_changed()) continue;
    auto to = FromProto(event.state_changed().to());
    ASSERT_TRUE(to.has_value());
    EXPECT_EQ(FromProto(event.state_changed().from()), state) << job.key.id;
    if (state) {
      EXPECT_TRUE(CanTransition(*state, *to)) << event.DebugString();
    }
    state = to;
  }
  EXPECT_EQ(state, job.state) << job.key.id;
  EXPECT_EQ(job.last_sequence, sequence) << job.key.id;
}

inline void CheckFields(const Job& job) {
  EXPECT_EQ(job.end_time.has_value(), IsEnded(job.state)) << job.key.id;
  EXPECT_EQ(job.error.code() != 0, job.state == JobState::kFailed) << job.key.id;
  EXPECT_EQ(job.result.has_value(), job.has_artifact) << job.key.id;
  EXPECT_EQ(job.artifact_uid.empty(), !job.has_artifact) << job.key.id;
  if (!job.result_of.empty()) {
    EXPECT_NE(job.artifact_uid, job.uid) << job.key.id;
  }
  if (job.state == JobState::kSucceeded) {
    EXPECT_TRUE(job.has_artifact) << job.key.id;
  }
}

inline void JobStoreSuite::CheckInvariants() {
  std::map<JobState, int64_t> counted;
  for (JobState state : kAllJobStates) counted[state] = 0;
  for (const char* tenant : {"acme", "other"}) {
    ListQuery query;
    query.tenant = tenant;
    query.limit = 100000;
    auto page = store().List(query);
    ASSERT_EQ(Outcome(page), "OK");
    for (const Job& job : page->jobs) {
      ++counted[job.state];
      CheckFields(job);
      auto batch = store().Events(job.key, 0, 100000);
      ASSERT_EQ(Outcome(batch), "OK");
      CheckHistory(job, batch->events);
    }
  }
  auto stats = store().Stats(now());
  ASSERT_EQ(Outcome(stats), "OK");
  EXPECT_EQ(stats->jobs, counted);
  EXPECT_EQ(stats->depth + stats->delayed + stats->held, counted[JobState::kQueued]);
  EXPECT_EQ(stats->busy_slots, counted[JobState::kRunning] + counted[JobState::kCancelling]);
}

}  // namespace quantry::server
