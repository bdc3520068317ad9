#include "server/artifacts/deleted_jobs.h"

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "common/ids.h"
#include "gtest/gtest.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/jobs/sqlite_job_store.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;

// A folder that fails as it is told.
class Failing : public ArtifactStore {
 public:
  explicit Failing(const std::string& root) : store_(*OpenLocalArtifactStore("file://" + root)) {}

  std::string RootUri() const override { return store_->RootUri(); }
  std::string OutputUri(std::string_view tenant, std::string_view uid,
                        std::int64_t epoch) const override {
    return store_->OutputUri(tenant, uid, epoch);
  }
  std::string CheckpointUri(std::string_view tenant, std::string_view uid,
                            std::int64_t epoch) const override {
    return store_->CheckpointUri(tenant, uid, epoch);
  }
  absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(std::string_view uri,
                                                       std::string_view path) override {
    return store_->Open(uri, path);
  }
  absl::Status DeleteJob(std::string_view tenant, std::string_view uid) override {
    ++calls;
    if (answer) {
      if (absl::Status status = answer(std::string(uid)); !status.ok()) return status;
    }
    return store_->DeleteJob(tenant, uid);
  }

  std::function<absl::Status(const std::string& uid)> answer;
  int calls = 0;

 private:
  std::unique_ptr<ArtifactStore> store_;
};

class DeletedJobsTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "deleted-jobs-" + std::to_string(getpid());
    fs::remove_all(root_);
    fs::create_directories(root_ + "/data");
    jobs_ = *OpenSqliteJobStore({root_ + "/data", {}});
    artifacts_.emplace(root_ + "/artifacts");
  }
  void TearDown() override {
    jobs_ = nullptr;
    fs::remove_all(root_);
  }

  // Submitted, cancelled and deleted; its uid.
  std::string Deleted(const std::string& id) {
    SubmitRequest request;
    request.key = {"acme", id};
    request.uid = NewUuid4();
    request.spec.mutable_method()->mutable_rtn();
    EXPECT_TRUE(jobs_->Submit(request, now_).ok());
    EXPECT_TRUE(jobs_->Cancel({request.key, "", ""}, now_).ok());
    EXPECT_TRUE(jobs_->Delete({request.key, ""}, now_).ok());
    return request.uid;
  }
  std::size_t Left() { return jobs_->ListGarbage(1000)->size(); }

  std::string root_;
  std::unique_ptr<JobStore> jobs_;
  std::optional<Failing> artifacts_;
  Time now_ = SystemClock().Now();
};

TEST_F(DeletedJobsTest, OneThatCannotBeRemovedBlocksNoOther) {
  std::set<std::string> bad;
  for (int i = 0; i < 150; ++i) bad.insert(Deleted("bad-" + std::to_string(i)));
  for (int i = 0; i < 20; ++i) Deleted("good-" + std::to_string(i));
  artifacts_->answer = [&](const std::string& uid) {
    return bad.contains(uid) ? absl::PermissionDeniedError("not yours") : absl::OkStatus();
  };
  DeletedJobs deleted(jobs_.get(), &*artifacts_);
  for (int pass = 0; pass < 3; ++pass) deleted.RemoveBatch({});
  EXPECT_EQ(Left(), 150u);
  artifacts_->answer = nullptr;
  for (int pass = 0; pass < 4; ++pass) deleted.RemoveBatch({});
  EXPECT_EQ(Left(), 0u) << "what was stuck is tried again";
}

TEST_F(DeletedJobsTest, ADenialIsToldOnceAJob) {
  const std::string denied = Deleted("denied");
  const std::string other = Deleted("other");
  artifacts_->answer = [](const std::string&) { return absl::PermissionDeniedError("403"); };
  DeletedJobs deleted(jobs_.get(), &*artifacts_);
  testing::internal::CaptureStderr();
  for (int pass = 0; pass < 6; ++pass) deleted.RemoveBatch({});
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_GE(artifacts_->calls, 6) << "both are tried again";
  for (const std::string& uid : {denied, other}) {
    const auto first = log.find(uid);
    ASSERT_NE(first, std::string::npos) << log;
    EXPECT_EQ(log.find(uid, first + 1), std::string::npos) << log;
  }
  artifacts_->answer = nullptr;
  for (int pass = 0; pass < 2; ++pass) deleted.RemoveBatch({});
  EXPECT_EQ(Left(), 0u);
}

// EACCES below one folder reads like a disk that is away.
TEST_F(DeletedJobsTest, OneThatLooksAwayBlocksNoOther) {
  const std::string bad = Deleted("bad");
  for (int i = 0; i < 10; ++i) Deleted("good-" + std::to_string(i));
  artifacts_->answer = [&](const std::string& uid) {
    return uid == bad ? absl::UnavailableError("cannot remove") : absl::OkStatus();
  };
  DeletedJobs deleted(jobs_.get(), &*artifacts_);
  EXPECT_EQ(deleted.RemoveBatch({}), 10);
  EXPECT_EQ(Left(), 1u);
}

TEST_F(DeletedJobsTest, AStoreThatDoesNotAnswerEndsThePass) {
  for (int i = 0; i < 5; ++i) Deleted("job-" + std::to_string(i));
  artifacts_->answer = [](const std::string&) { return absl::UnavailableError("503"); };
  DeletedJobs deleted(jobs_.get(), &*artifacts_);
  EXPECT_EQ(deleted.RemoveBatch({}), 0);
  EXPECT_EQ(artifacts_->calls, 3);
  artifacts_->answer = nullptr;
  EXPECT_EQ(deleted.RemoveBatch({}), 2);
  EXPECT_EQ(deleted.RemoveBatch({}), 0) << "nothing new: the others are tried again";
  EXPECT_EQ(deleted.RemoveBatch({}), 3);
  EXPECT_EQ(Left(), 0u);
}

TEST_F(DeletedJobsTest, WokenItRemovesAllWhileTheCallerGoesOn) {
  for (int i = 0; i < 250; ++i) Deleted("job-" + std::to_string(i));
  std::mutex hold;
  hold.lock();  // the store is slow
  artifacts_->answer = [&hold](const std::string&) {
    const std::lock_guard lock(hold);
    return absl::OkStatus();
  };
  {
    DeletedJobs deleted(jobs_.get(), &*artifacts_);
    deleted.Wake();
    EXPECT_EQ(Left(), 250u);
    hold.unlock();
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (Left() > 0 && std::chrono::steady_clock::now() < give_up) std::this_thread::yield();
  }
  EXPECT_EQ(Left(), 0u);
}

}  // namespace
}  // namespace quantry::server
