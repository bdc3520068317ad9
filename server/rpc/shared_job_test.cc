#include "server/rpc/shared_job.h"

#include <gtest/gtest.h>

#include "common/errors.h"
#include "tests/conformance/faulty_job_store.h"

namespace quantry::server {
namespace {

using std::chrono::milliseconds;

const JobKey kKey{"acme", "job-one"};

// Answers one job with one event, or `fault`, and counts what it is asked.
class OneJobStore : public FaultyJobStore {
 public:
  OneJobStore() : FaultyJobStore(nullptr, {}) {}

  absl::StatusOr<Job> Get(const JobKey& key) override {
    ++gets;
    if (!fault.ok()) return fault;
    Job job;
    job.key = key;
    job.uid = uid;
    job.last_sequence = 1;
    return job;
  }
  absl::StatusOr<EventBatch> Events(const JobKey&, int64_t, int) override {
    ++events;
    if (!fault.ok()) return fault;
    EventBatch batch;
    batch.uid = uid;
    batch.events.emplace_back().set_sequence(1);
    batch.last_sequence = 1;
    return batch;
  }

  std::string uid = "uid-1";
  absl::Status fault;
  int gets = 0;
  int events = 0;
};

class SharedJobTest : public testing::Test {
 protected:
  MonotonicTime Now() const { return clock_.Monotonic(); }
  std::string Get() { return ReasonOf(one_->Get(Now()).status()); }
  std::string Events() { return ReasonOf(other_->Events("uid-1", 0, 1, 32).status()); }
  void Break() { store_.fault = MakeError(Reason::kStoreUnavailable, "the disk is gone"); }

  FakeClock clock_;
  OneJobStore store_;
  SharedJobs jobs_;
  std::shared_ptr<SharedJob> one_ = jobs_.Of(&store_, &clock_, kKey);
  std::shared_ptr<SharedJob> other_ = jobs_.Of(&store_, &clock_, kKey);
};

TEST_F(SharedJobTest, OneReadIsForAllWhoAskedBefore) {
  ASSERT_EQ(one_, other_);
  const MonotonicTime asked = Now();
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(one_->Get(asked).ok());
  for (int i = 0; i < 100; ++i) EXPECT_EQ(Events(), "");
  EXPECT_EQ(store_.gets, 1);
  EXPECT_EQ(store_.events, 1);
  clock_.Advance(milliseconds(1));
  EXPECT_EQ(Get(), "");
  EXPECT_EQ(store_.gets, 2) << "what was read earlier may be old";
}

TEST_F(SharedJobTest, OneFailureIsForAllWhoAsk) {
  Break();
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(Get(), "STORE_UNAVAILABLE");
    EXPECT_EQ(Events(), "STORE_UNAVAILABLE");
    clock_.Advance(milliseconds(9));
  }
  EXPECT_EQ(store_.gets, 1);
  EXPECT_EQ(store_.events, 0);
}

TEST_F(SharedJobTest, AFailureOfEventsIsForAllToo) {
  Break();
  EXPECT_EQ(Events(), "STORE_UNAVAILABLE");
  EXPECT_EQ(Get(), "STORE_UNAVAILABLE");
  EXPECT_EQ(store_.gets + store_.events, 1);
}

TEST_F(SharedJobTest, OneAsksAgainForAll) {
  Break();
  EXPECT_EQ(Get(), "STORE_UNAVAILABLE");
  clock_.Advance(SharedJob::kFailureStands);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(Get(), "STORE_UNAVAILABLE");
  EXPECT_EQ(store_.gets, 2) << "the second failure stands as the first did";
  store_.fault = absl::OkStatus();
  const MonotonicTime failed = Now();
  clock_.Advance(SharedJob::kFailureStands);
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(one_->Get(failed).ok());
  EXPECT_EQ(store_.gets, 3);
}

// One watch is still of a job that was deleted, another of the one that has its
// name now.
TEST_F(SharedJobTest, EventsAreOfAJobNotOfAName) {
  EXPECT_EQ((*one_->Events("uid-1", 0, 1, 32))->uid, "uid-1");
  store_.uid = "uid-2";
  EXPECT_EQ((*other_->Events("uid-2", 0, 1, 32))->uid, "uid-2");
  EXPECT_EQ((*other_->Events("uid-2", 0, 1, 32))->uid, "uid-2");
  EXPECT_EQ(store_.events, 2);
  EXPECT_EQ((*one_->Events("uid-1", 0, 1, 32))->uid, "uid-2") << "for the asker to see";
}

TEST_F(SharedJobTest, ANoIsNoFailure) {
  store_.fault = MakeError(Reason::kJobNotFound, "no such job");
  EXPECT_EQ(Get(), "JOB_NOT_FOUND");
  store_.fault = absl::OkStatus();
  EXPECT_EQ(Get(), "");
}

}  // namespace
}  // namespace quantry::server
