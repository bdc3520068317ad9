#include "server/artifacts/garbage.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/digest.h"
#include "common/ids.h"
#include "gtest/gtest.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/artifacts/local_blob_store.h"
#include "server/jobs/sqlite_job_store.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;

// Real stores in a folder; `now_` is days after the files were written unless a
// test makes them new.
class GarbageTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "garbage-" + std::to_string(getpid());
    fs::remove_all(root_);
    fs::create_directories(root_ + "/data");
    jobs_ = *OpenSqliteJobStore({root_ + "/data", {}});
    artifacts_ = *OpenLocalArtifactStore("file://" + root_ + "/artifacts");
    blobs_ = *OpenLocalBlobStore(root_ + "/blobs");
    v1::WorkerInfo worker;
    worker.set_worker_id("w1");
    worker.add_methods("rtn");
    ASSERT_TRUE(jobs_->RegisterWorker(worker, "s1", now_).ok());
  }
  void TearDown() override {
    jobs_ = nullptr;
    fs::remove_all(root_);
  }

  std::string Upload(const std::string& text) {
    const BlobId blob{Sha256Hex(text), static_cast<std::int64_t>(text.size())};
    auto upload = blobs_->Begin("acme", blob, 0);
    EXPECT_TRUE(upload.ok() && (*upload)->Append(text).ok() && (*upload)->Finish().ok());
    return blob.sha256;
  }
  Job Submit(const std::string& id, const std::string& model = "", const std::string& text = "") {
    SubmitRequest request;
    request.key = {"acme", id};
    request.uid = NewUuid4();
    request.spec.mutable_method()->mutable_rtn();
    if (!model.empty()) {
      request.spec.mutable_model()->mutable_blobs()->add_files()->set_sha256(model);
    }
    if (!text.empty()) {
      request.spec.mutable_calibration()->mutable_source()->mutable_blob()->set_sha256(text);
    }
    return jobs_->Submit(request, now_)->job;
  }
  LeaseToken Acquire() {
    const Job job = (*jobs_->Acquire({"s1", NewUuid4()}, now_))->job;
    Write(artifacts_->OutputUri("acme", job.uid, job.epoch), "model");
    Write(artifacts_->CheckpointUri("acme", job.uid, job.epoch), "state");
    return {"s1", job.key, job.epoch};
  }
  void Write(const std::string& uri, const std::string& name) {
    const std::string folder = *LocalPathFromUri(uri);
    fs::create_directories(folder);
    std::ofstream(folder + "/" + name) << "12345";
  }
  bool Exists(const std::string& uri) { return fs::exists(*LocalPathFromUri(uri)); }
  bool HasBlob(const std::string& sha256) { return fs::exists(blobs_->LocalPath("acme", sha256)); }

  GarbageReport Collect(bool dry_run = false) {
    auto report =
        CollectGarbage(*jobs_, **OpenStorage("file://" + root_ + "/artifacts"),
                       **OpenStorage("file://" + root_ + "/blobs"), {.dry_run = dry_run}, now_);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.value_or(GarbageReport{});
  }

  std::string root_;
  std::unique_ptr<JobStore> jobs_;
  std::unique_ptr<ArtifactStore> artifacts_;
  std::unique_ptr<BlobStore> blobs_;
  Time now_ = SystemClock().Now() + std::chrono::hours(48);
};

TEST_F(GarbageTest, UploadsThatNoJobNames) {
  const std::string model = Upload("model");
  const std::string text = Upload("text");
  const std::string nobody = Upload("nobody's");
  Submit("job-one", model, text);
  const GarbageReport would = Collect(/*dry_run=*/true);
  EXPECT_EQ(would.blobs, 1);
  EXPECT_EQ(would.bytes, 8);
  EXPECT_TRUE(HasBlob(nobody)) << "a dry run removes nothing";
  EXPECT_EQ(Collect().blobs, 1);
  EXPECT_TRUE(HasBlob(model));
  EXPECT_TRUE(HasBlob(text));
  EXPECT_FALSE(HasBlob(nobody));
  EXPECT_EQ(Collect().objects, 0) << "again";
}

// The job that made it is gone, another one shares it.
TEST_F(GarbageTest, SharedArtifactsStay) {
  v1::WorkerInfo worker;
  worker.set_worker_id("w1");
  worker.set_engine_version("1.0");
  worker.add_methods("rtn");
  ASSERT_TRUE(jobs_->RegisterWorker(worker, "s1", now_).ok());
  const Job first = Submit("job-one");
  const LeaseToken lease = Acquire();
  const std::string output = artifacts_->OutputUri("acme", first.uid, 1);
  ASSERT_TRUE(jobs_
                  ->Complete({.lease = lease,
                              .manifest_sha256 = "sha",
                              .artifact_uri = output,
                              .result = {},
                              .events = {}},
                             now_)
                  .ok());
  SubmitRequest request;
  request.key = {"acme", "job-two"};
  request.uid = NewUuid4();
  request.spec = first.spec;
  request.reuse_result = true;
  request.engine_version = "1.0";
  ASSERT_EQ(jobs_->Submit(request, now_)->reuse, Reuse::kHit);
  ASSERT_TRUE(jobs_->Delete({first.key, ""}, now_).ok());
  Collect();
  EXPECT_TRUE(Exists(output));
  ASSERT_TRUE(jobs_->Delete({request.key, ""}, now_).ok());
  Collect();
  EXPECT_FALSE(Exists(output));
}

TEST_F(GarbageTest, NewUploadsStay) {
  const std::string nobody = Upload("nobody's");
  now_ = SystemClock().Now() + std::chrono::hours(23);
  EXPECT_EQ(Collect().objects, 0);
  EXPECT_TRUE(HasBlob(nobody));
}

TEST_F(GarbageTest, AnUploadThatWasAskedForIsNew) {
  const std::string nobody = Upload("old");
  fs::last_write_time(blobs_->LocalPath("acme", nobody),
                      fs::file_time_type::clock::now() - std::chrono::hours(100));
  ASSERT_TRUE(blobs_->Find("acme", {nobody, 3})->complete);
  now_ = SystemClock().Now() + std::chrono::hours(1);
  EXPECT_EQ(Collect().objects, 0) << "a client is about to submit with it";
}

TEST_F(GarbageTest, UnfinishedUploadsOnlyByAge) {
  auto upload = blobs_->Begin("acme", {Sha256Hex("half"), 4}, 0);
  ASSERT_TRUE((*upload)->Append("ha").ok());
  upload->reset();
  EXPECT_EQ(Collect().blobs, 1);
  EXPECT_FALSE(fs::exists(root_ + "/blobs/acme/.partial/" + Sha256Hex("half")));
}

TEST_F(GarbageTest, DeadAttemptsGoTheNeededOnesStay) {
  const Job job = Submit("job-one");
  const LeaseToken first = Acquire();
  ASSERT_TRUE(jobs_->CommitCheckpoint({first, {}, {}}, now_).ok());
  ASSERT_TRUE(jobs_->Release(first, "", now_).ok());
  const LeaseToken second = Acquire();
  const auto output = [&](int epoch) { return artifacts_->OutputUri("acme", job.uid, epoch); };
  const auto checkpoint = [&](int epoch) {
    return artifacts_->CheckpointUri("acme", job.uid, epoch);
  };
  EXPECT_EQ(Collect().attempts, 1);
  EXPECT_FALSE(Exists(output(1)));
  EXPECT_TRUE(Exists(checkpoint(1))) << "the second attempt resumes from it";
  EXPECT_TRUE(Exists(output(2)));
  EXPECT_TRUE(Exists(checkpoint(2)));

  CompleteRequest done;
  done.lease = second;
  done.manifest_sha256 = "sha";
  ASSERT_TRUE(jobs_->Complete(done, now_).ok());
  EXPECT_EQ(Collect().attempts, 2);
  EXPECT_FALSE(Exists(checkpoint(1)));
  EXPECT_FALSE(Exists(checkpoint(2)));
  EXPECT_TRUE(Exists(output(2))) << "the artifact";
  EXPECT_EQ(Collect().objects, 0);
}

TEST_F(GarbageTest, AFailedJobKeepsWhatARetryNeeds) {
  const std::string model = Upload("model");
  const Job job = Submit("job-one", model);
  const LeaseToken lease = Acquire();
  ASSERT_TRUE(jobs_->CommitCheckpoint({lease, {}, {}}, now_).ok());
  FailRequest failure;
  failure.lease = lease;
  ASSERT_EQ(*jobs_->Fail(failure, now_), JobState::kFailed);
  EXPECT_EQ(Collect().attempts, 1);
  EXPECT_TRUE(HasBlob(model));
  EXPECT_TRUE(Exists(artifacts_->CheckpointUri("acme", job.uid, 1)));
  EXPECT_FALSE(Exists(artifacts_->OutputUri("acme", job.uid, 1)));
}

TEST_F(GarbageTest, JobsThatAreGoneNeedNothing) {
  const std::string uid = NewUuid4();
  Write(artifacts_->OutputUri("acme", uid, 7), "model");
  EXPECT_EQ(Collect().attempts, 1);
  EXPECT_FALSE(Exists(artifacts_->OutputUri("acme", uid, 7)));
}

TEST_F(GarbageTest, OtherFilesAreNotTouched) {
  for (const char* path : {"artifacts/README", "artifacts/acme/notes/1/x", "blobs/acme/notes",
                           "artifacts/acme/11111111-1111-4111-8111-111111111111/x/y"}) {
    fs::create_directories(fs::path(root_ + "/" + path).parent_path());
    std::ofstream(root_ + "/" + path) << "mine";
  }
  EXPECT_EQ(Collect().objects, 0);
  EXPECT_TRUE(fs::exists(root_ + "/artifacts/README"));
}

}  // namespace
}  // namespace quantry::server
