#include "server/scheduling/notifying_job_store.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "common/ids.h"
#include "server/jobs/sqlite_job_store.h"

namespace quantry::server {
namespace {

class NotifyingJobStoreTest : public testing::Test {
 protected:
  NotifyingJobStoreTest() {
    std::string path = std::filesystem::temp_directory_path() / "quantry_notify_XXXXXX";
    dir_ = mkdtemp(path.data());
    store_ = NotifyingJobStore(OpenSqliteJobStore({dir_, {}}).value(), &hub_);
    work_ = hub_.OnWorkAvailable([this] { ++work_calls_; });
    job_ = hub_.OnJobChanged(kKey, [this] { ++job_calls_; });
    v1::WorkerInfo worker;
    worker.set_worker_id("w1");
    worker.add_methods("rtn");
    EXPECT_TRUE(store_->RegisterWorker(worker, "s1", kNow).ok());
    work_calls_ = 0;
  }
  ~NotifyingJobStoreTest() override {
    store_ = nullptr;
    std::filesystem::remove_all(dir_);
  }

  SubmitResult Submit() {
    SubmitRequest request;
    request.key = kKey;
    request.uid = NewUuid4();
    request.request_id = "r1";
    request.spec.mutable_method()->mutable_rtn();
    return store_->Submit(request, kNow).value();
  }
  LeaseToken Acquire() {
    auto grant = store_->Acquire({"s1", NewUuid4()}, kNow).value();
    return {"s1", kKey, grant ? grant->job.epoch : 0};
  }
  // Calls since the last look.
  int Job() { return std::exchange(job_calls_, 0); }
  int Work() { return std::exchange(work_calls_, 0); }

  static constexpr Time kNow = Time(std::chrono::hours(480'000));
  const JobKey kKey{"acme", "job-one"};
  std::string dir_;
  WakeupHub hub_;
  std::unique_ptr<JobStore> store_;
  WakeupHub::Subscription work_;
  WakeupHub::Subscription job_;
  int job_calls_ = 0;
  int work_calls_ = 0;
};

TEST_F(NotifyingJobStoreTest, TheLifeOfAJob) {
  Submit();
  EXPECT_EQ(Work(), 1);
  Submit();
  EXPECT_EQ(Work(), 0) << "a repeat makes no work";
  LeaseToken lease = Acquire();
  EXPECT_EQ(Job(), 1);
  Acquire();
  EXPECT_EQ(Job(), 0) << "nothing acquired";
  ASSERT_TRUE(store_->Heartbeat({"s1", {{kKey, 1, {}, {}}, {kKey, 99, {}, {}}}}, kNow).ok());
  EXPECT_EQ(Job(), 1) << "one of the two beats is stale";
  ASSERT_TRUE(store_->CommitCheckpoint({lease, {}, {}}, kNow).ok());
  EXPECT_EQ(Job(), 1);
  ASSERT_TRUE(store_->Release(lease, "", kNow).ok());
  EXPECT_EQ(Job(), 1);
  EXPECT_EQ(Work(), 1);
  FailRequest failure;
  failure.lease = Acquire();
  failure.retryable = true;
  Job();
  ASSERT_TRUE(store_->Fail(failure, kNow).ok());
  EXPECT_EQ(Job(), 1);
  EXPECT_EQ(Work(), 1);
  ASSERT_TRUE(store_->Cancel({kKey, "", ""}, kNow).ok());
  EXPECT_EQ(Job(), 1);
  ASSERT_TRUE(store_->Retry({kKey, ""}, kNow).ok());
  EXPECT_EQ(Job(), 1);
  EXPECT_EQ(Work(), 1);
  ASSERT_TRUE(store_->ResumeQueue().ok());
  EXPECT_EQ(Work(), 1);
  ASSERT_TRUE(store_->Cancel({kKey, "", ""}, kNow).ok());
  Job();
  ASSERT_TRUE(store_->Delete({kKey, ""}, kNow).ok());
  EXPECT_EQ(Job(), 1);
  EXPECT_FALSE(store_->Cancel({kKey, "", ""}, kNow).ok());
  EXPECT_EQ(Job(), 0) << "nothing changed";
}

TEST_F(NotifyingJobStoreTest, TheSweepWakesThoseItConcerns) {
  ASSERT_TRUE(store_->Sweep(kNow).ok());
  Submit();
  Acquire();
  ASSERT_TRUE(store_->Sweep(kNow + std::chrono::seconds(10)).ok());
  Job();
  Work();
  ASSERT_TRUE(store_->Sweep(kNow + std::chrono::seconds(15)).ok());
  EXPECT_EQ(Job(), 1);
  EXPECT_EQ(Work(), 1);
}

}  // namespace
}  // namespace quantry::server
