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
  std::string BlobFile(const std::string& sha256) { return root_ + "/blobs/acme/" + sha256; }
  bool HasBlob(const std::string& sha256) { return fs::exists(BlobFile(sha256)); }

  GarbageReport Collect(bool dry_run = false) {
    const auto artifacts = *OpenStorage("file://" + root_ + "/artifacts");
    const auto blobs = *OpenStorage("file://" + root_ + "/blobs");
    const auto spool = *OpenStorage("file://" + root_ + "/spool");
    auto report =
        CollectGarbage(*jobs_, {*artifacts, *blobs, spool.get()}, {.dry_run = dry_run}, now_);
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

// A store that does not let go of what lies below one prefix.
class Holding : public Storage {
 public:
  Holding(std::unique_ptr<Storage> storage, std::string prefix)
      : storage_(std::move(storage)), prefix_(std::move(prefix)) {}
  absl::StatusOr<std::string> Read(std::string_view path, std::int64_t max_bytes) override {
    return storage_->Read(path, max_bytes);
  }
  absl::StatusOr<std::unique_ptr<StoredReader>> Open(std::string_view path) override {
    return storage_->Open(path);
  }
  absl::Status Write(std::string_view path, std::string_view bytes) override {
    return storage_->Write(path, bytes);
  }
  absl::StatusOr<Transferred> Download(std::string_view path, const std::string& local_file,
                                       const TransferCheck& check) override {
    return storage_->Download(path, local_file, check);
  }
  absl::StatusOr<Transferred> Upload(const std::string& local_file, std::string_view path,
                                     const TransferCheck& check) override {
    return storage_->Upload(local_file, path, check);
  }
  absl::StatusOr<std::optional<StoredFile>> Stat(std::string_view path) override {
    return storage_->Stat(path);
  }
  absl::StatusOr<std::vector<StoredFile>> List(std::string_view prefix) override {
    return storage_->List(prefix);
  }
  absl::Status Delete(std::string_view path) override {
    return path.starts_with(prefix_) ? Held() : storage_->Delete(path);
  }
  absl::Status DeleteTree(std::string_view prefix) override {
    return prefix.starts_with(prefix_) ? Held() : storage_->DeleteTree(prefix);
  }

 private:
  static absl::Status Held() { return absl::PermissionDeniedError("held"); }

  const std::unique_ptr<Storage> storage_;
  const std::string prefix_;
};

TEST_F(GarbageTest, WhatCannotBeRemovedKeepsNothingElse) {
  const std::string first = NewUuid4();
  const std::string second = NewUuid4();
  Write(artifacts_->OutputUri("acme", first, 1), "model");
  Write(artifacts_->OutputUri("acme", second, 1), "model");
  const std::string upload = Upload("nobody's");
  Holding artifacts(*OpenStorage("file://" + root_ + "/artifacts"),
                    "acme/" + std::min(first, second));
  const auto blobs = *OpenStorage("file://" + root_ + "/blobs");
  const auto report = CollectGarbage(*jobs_, {artifacts, *blobs}, {}, now_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->failures, 1);
  EXPECT_TRUE(absl::IsPermissionDenied(report->first_failure));
  EXPECT_EQ(report->attempts, 1);
  EXPECT_TRUE(Exists(artifacts_->OutputUri("acme", std::min(first, second), 1)));
  EXPECT_FALSE(Exists(artifacts_->OutputUri("acme", std::max(first, second), 1)));
  EXPECT_FALSE(HasBlob(upload));
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
  fs::last_write_time(BlobFile(nobody), fs::file_time_type::clock::now() - std::chrono::hours(100));
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

// As an object store says that a blob was asked for: by a file beside it.
TEST_F(GarbageTest, AMarkedUploadIsNewAndMarkersGoToo) {
  const std::string nobody = Upload("old");
  const std::string used = Upload("used");
  Submit("job-one", used);
  fs::create_directories(root_ + "/blobs/acme/.asked");
  for (const std::string& sha256 : {nobody, used}) {
    std::ofstream(root_ + "/blobs/acme/.asked/" + sha256) << "";
    fs::last_write_time(BlobFile(sha256),
                        fs::file_time_type::clock::now() - std::chrono::hours(100));
  }
  now_ = SystemClock().Now() + std::chrono::hours(1);
  EXPECT_EQ(Collect().objects, 0) << "a client is about to submit with it";
  now_ = SystemClock().Now() + std::chrono::hours(30);
  EXPECT_EQ(Collect().blobs, 1);
  EXPECT_FALSE(HasBlob(nobody));
  EXPECT_TRUE(HasBlob(used));
  EXPECT_TRUE(fs::is_empty(root_ + "/blobs/acme/.asked"));
}

TEST_F(GarbageTest, UploadsThatStoppedInASpool) {
  const std::string partial = root_ + "/spool/acme/.partial/" + Sha256Hex("half");
  const auto begin = [&] {
    fs::create_directories(fs::path(partial).parent_path());
    std::ofstream(partial) << "ha";
  };
  begin();
  EXPECT_EQ(Collect().blobs, 1);
  EXPECT_FALSE(fs::exists(partial));
  begin();
  const auto spool = *OpenStorage("file://" + root_ + "/spool");
  ASSERT_TRUE(RemoveOldUploads(*spool, std::chrono::hours(72), now_).ok());
  EXPECT_TRUE(fs::exists(partial));
  ASSERT_TRUE(RemoveOldUploads(*spool, std::chrono::hours(24), now_).ok());
  EXPECT_FALSE(fs::exists(partial));
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

// Of a worker that was killed in the middle of a file: as large as the file was to be.
TEST_F(GarbageTest, AFileThatWasNotFinishedGoes) {
  const Job job = Submit("job-one");
  Acquire();
  const std::string needed = artifacts_->OutputUri("acme", job.uid, 1);
  const std::string dead = artifacts_->OutputUri("acme", NewUuid4(), 1);
  for (const std::string& output : {needed, dead}) Write(output, ".tmp-7-0");
  now_ = SystemClock().Now() + std::chrono::hours(23);
  EXPECT_EQ(Collect().objects, 0) << "somebody may be writing it";
  now_ = SystemClock().Now() + std::chrono::hours(48);
  EXPECT_EQ(Collect(/*dry_run=*/true).objects, 2);
  const GarbageReport report = Collect();
  EXPECT_EQ(report.objects, 2);
  EXPECT_EQ(report.bytes, 10);
  for (const std::string& output : {needed, dead}) EXPECT_FALSE(Exists(output + "/.tmp-7-0"));
  EXPECT_TRUE(Exists(needed + "/model"));
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
