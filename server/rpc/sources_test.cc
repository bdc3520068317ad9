#include "server/rpc/sources.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "common/digest.h"
#include "common/errors.h"
#include "common/storage.h"
#include "server/artifacts/object_blob_store.h"

namespace quantry::server {
namespace {

class SourcesTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
    auto allowed = TenantSources::Open({}, "");
    ASSERT_TRUE(allowed.ok()) << allowed.status();
    allowed_.emplace(*std::move(allowed));
    auto blobs = OpenBlobStore(UriFromLocalPath(root_ + "/blobs"), root_ + "/spool");
    ASSERT_TRUE(blobs.ok()) << blobs.status();
    blobs_ = *std::move(blobs);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  v1::BlobFile Uploaded(const std::string& path, const std::string& content) {
    v1::BlobFile file;
    file.set_path(path);
    file.set_sha256(Sha256Hex(content));
    file.set_size_bytes(static_cast<std::int64_t>(content.size()));
    auto upload = blobs_->Begin("acme", {file.sha256(), file.size_bytes()}, 0);
    EXPECT_TRUE(upload.ok() && (*upload)->Append(content).ok() && (*upload)->Finish().ok()) << path;
    return file;
  }

  const std::string root_ = testing::TempDir() + "sources-" + std::to_string(getpid());
  std::optional<TenantSources> allowed_;
  std::unique_ptr<BlobStore> blobs_;
};

// What a client reads of a quote must not be a place in our scratch folder.
TEST_F(SourcesTest, AnEnginesWordsGetTheNamesThatTheClientGave) {
  v1::JobSpec spec;
  *spec.mutable_model()->mutable_blobs()->add_files() = Uploaded("config.json", "{}");
  *spec.mutable_calibration()->mutable_source()->mutable_blob() = Uploaded("train.txt", "Once");
  spec.mutable_evaluation()->mutable_source()->set_local_path("/texts/test.txt");
  const Sources sources(&*allowed_, blobs_.get(), root_ + "/scratch");
  const auto local = sources.Materialise("acme", spec, [] { return absl::OkStatus(); });
  ASSERT_TRUE(local.ok()) << local.status();
  const v1::EngineJob& job = (*local)->job;
  const auto told = [&local](const std::string& words) { return (*local)->WithGivenNames(words); };
  EXPECT_EQ(told("there is no file " + job.model_dir() + "/tokenizer.json"),
            "there is no file tokenizer.json");
  EXPECT_EQ(told(job.model_dir() + " has no weights"), "the model has no weights");
  EXPECT_EQ(told(job.calibration().text().path() + " has 4 bytes"), "train.txt has 4 bytes");
  EXPECT_EQ(told(job.evaluation().text().path() + " is no file"), "/texts/test.txt is no file");
  EXPECT_EQ(told(job.output_dir() + " is there"), "the job/output is there");
  const auto status = (*local)->WithGivenNames(
      MakeError(Reason::kInvalidCalibration, job.calibration().text().path() + " has 4 bytes",
                {{"path", job.calibration().text().path()}, {"got", "4"}}));
  EXPECT_TRUE(HasReason(status, Reason::kInvalidCalibration));
  EXPECT_EQ(status.message(), "train.txt has 4 bytes");
  EXPECT_EQ(MetadataOf(status, "path"), "train.txt");
  EXPECT_EQ(MetadataOf(status, "got"), "4");
}

// Uploads in an object store are copied for a quote.
class CopiedSourcesTest : public SourcesTest {
 protected:
  void SetUp() override {
    SourcesTest::SetUp();
    std::filesystem::create_directories(root_ + "/spool");
    const std::string objects = UriFromLocalPath(root_ + "/objects");
    blobs_ = NewObjectBlobStore(objects, *OpenStorage(objects), root_ + "/spool");
  }
  absl::StatusOr<std::unique_ptr<Sources::LocalJob>> Materialise(const Awaited& awaited) {
    const Sources sources(&*allowed_, blobs_.get(), root_ + "/scratch", most_);
    return sources.Materialise("acme", spec_, awaited);
  }
  static absl::Status Wanted() { return absl::OkStatus(); }

  v1::JobSpec spec_;
  std::int64_t most_ = Sources::kMostPlacedBytes;
};

TEST_F(CopiedSourcesTest, WhatHasManyNamesIsCopiedOnce) {
  v1::BlobFile file = Uploaded("one.json", "{}");
  for (const char* path : {"one.json", "two.json", "deep/three.json"}) {
    file.set_path(path);
    *spec_.mutable_model()->mutable_blobs()->add_files() = file;
  }
  const auto local = Materialise(Wanted);
  ASSERT_TRUE(local.ok()) << local.status();
  const std::string folder = (*local)->job.model_dir();
  for (const char* path : {"/one.json", "/two.json", "/deep/three.json"}) {
    EXPECT_EQ(std::filesystem::hard_link_count(folder + path), 3u) << path;
    EXPECT_EQ(std::filesystem::file_size(folder + path), 2u) << path;
  }
}

TEST_F(CopiedSourcesTest, AQuoteReadsOnlySoMuch) {
  auto* blobs = spec_.mutable_model()->mutable_blobs();
  *blobs->add_files() = Uploaded("config.json", "{\"a\":1}");
  *blobs->add_files() = Uploaded("tokenizer.json", "{\"b\":2}");
  most_ = 14;
  EXPECT_TRUE(Materialise(Wanted).ok());
  most_ = 13;
  const absl::Status status = Materialise(Wanted).status();
  EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
  EXPECT_NE(status.message().find("tokenizer.json: quotes for uploads"), std::string::npos);
  EXPECT_TRUE(std::filesystem::is_empty(root_ + "/scratch"));
  blobs->mutable_files(0)->set_path("model.safetensors");  // begins with no header
  EXPECT_TRUE(HasReason(Materialise(Wanted).status(), Reason::kUnimplementedRpc));
}

TEST_F(CopiedSourcesTest, AQuoteEndsWithItsCaller) {
  *spec_.mutable_model()->mutable_blobs()->add_files() = Uploaded("config.json", "{}");
  const auto local = Materialise([] { return absl::CancelledError("left"); });
  EXPECT_TRUE(absl::IsCancelled(local.status())) << local.status();
  EXPECT_TRUE(std::filesystem::is_empty(root_ + "/scratch"));
}

}  // namespace
}  // namespace quantry::server
