#include "server/artifacts/local_blob_store.h"

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/digest.h"
#include "common/errors.h"
#include "gtest/gtest.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;

class LocalBlobStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "blobs-" + std::to_string(getpid());
    fs::remove_all(root_);
    store_ = *OpenLocalBlobStore(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  BlobId IdOf(const std::string& text) {
    return {.sha256 = Sha256Hex(text), .size_bytes = static_cast<std::int64_t>(text.size())};
  }
  std::string Content(const BlobId& blob) {
    std::stringstream text;
    text << std::ifstream(store_->LocalPath("t", blob.sha256)).rdbuf();
    return text.str();
  }

  std::string root_;
  std::unique_ptr<BlobStore> store_;
};

TEST_F(LocalBlobStoreTest, StoresWholeBlobs) {
  const BlobId blob = IdOf("hello world");
  EXPECT_FALSE(store_->Find("t", blob)->complete);
  auto upload = store_->Begin("t", blob, 0);
  ASSERT_TRUE(upload.ok()) << upload.status();
  EXPECT_TRUE((*upload)->Append("hello ").ok());
  EXPECT_TRUE((*upload)->Append("world").ok());
  EXPECT_FALSE(store_->Find("t", blob)->complete);
  EXPECT_TRUE((*upload)->Finish().ok());
  EXPECT_TRUE(store_->Find("t", blob)->complete);
  EXPECT_EQ(Content(blob), "hello world");
  EXPECT_FALSE(store_->Find("other", blob)->complete);  // tenants share nothing
}

TEST_F(LocalBlobStoreTest, EmptyBlob) {
  auto upload = store_->Begin("t", IdOf(""), 0);
  EXPECT_TRUE((*upload)->Finish().ok());
  EXPECT_TRUE(store_->Find("t", IdOf(""))->complete);
}

TEST_F(LocalBlobStoreTest, ResumesWhereItStopped) {
  const BlobId blob = IdOf("0123456789");
  ASSERT_TRUE((*store_->Begin("t", blob, 0))->Append("01234").ok());
  EXPECT_EQ(store_->Find("t", blob)->committed_bytes, 5);
  const auto wrong = store_->Begin("t", blob, 3);
  EXPECT_TRUE(HasReason(wrong.status(), Reason::kUploadOffset));
  EXPECT_EQ(MetadataOf(wrong.status(), "committed"), "5");
  auto upload = store_->Begin("t", blob, 5);
  ASSERT_TRUE(upload.ok());
  EXPECT_TRUE((*upload)->Append("56789").ok());
  EXPECT_TRUE((*upload)->Finish().ok());
  EXPECT_EQ(Content(blob), "0123456789");
}

TEST_F(LocalBlobStoreTest, OffsetZeroStartsOver) {
  const BlobId blob = IdOf("abc");
  ASSERT_TRUE((*store_->Begin("t", blob, 0))->Append("xx").ok());
  auto upload = store_->Begin("t", blob, 0);
  EXPECT_TRUE((*upload)->Append("abc").ok());
  EXPECT_TRUE((*upload)->Finish().ok());
}

TEST_F(LocalBlobStoreTest, WrongContentIsDiscarded) {
  const BlobId blob = IdOf("abc");
  auto upload = store_->Begin("t", blob, 0);
  EXPECT_TRUE((*upload)->Append("abX").ok());
  const absl::Status status = (*upload)->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(HasReason(status, Reason::kBlobMismatch));
  EXPECT_EQ(store_->Find("t", blob)->committed_bytes, 0);
  EXPECT_FALSE(store_->Find("t", blob)->complete);
}

TEST_F(LocalBlobStoreTest, TooMuchAndTooLittleAreRefused) {
  const BlobId blob = IdOf("abc");
  auto upload = store_->Begin("t", blob, 0);
  EXPECT_TRUE(HasReason((*upload)->Append("abcd"), Reason::kUploadOffset));
  EXPECT_TRUE((*upload)->Append("ab").ok());
  const absl::Status early = (*upload)->Finish();
  EXPECT_TRUE(HasReason(early, Reason::kUploadOffset));
  EXPECT_EQ(MetadataOf(early, "committed"), "2");
}

TEST_F(LocalBlobStoreTest, OneUploadAtATime) {
  const BlobId blob = IdOf("abc");
  auto first = store_->Begin("t", blob, 0);
  ASSERT_TRUE(first.ok());
  const auto second = store_->Begin("t", blob, 0);
  EXPECT_TRUE(HasReason(second.status(), Reason::kResourceLimit));
  EXPECT_TRUE(RetryAfterOf(second.status()).has_value());
  first->reset();
  EXPECT_TRUE(store_->Begin("t", blob, 0).ok());
}

TEST_F(LocalBlobStoreTest, HostileNamesAreRefused) {
  EXPECT_FALSE(store_->Find("../t", IdOf("a")).ok());
  EXPECT_FALSE(store_->Find("t", {.sha256 = "../../etc/passwd", .size_bytes = 1}).ok());
  EXPECT_FALSE(store_->Begin("t", {.sha256 = std::string(64, 'A'), .size_bytes = 1}, 0).ok());
  EXPECT_FALSE(store_->Begin("t", {.sha256 = std::string(64, 'a'), .size_bytes = -1}, 0).ok());
}

TEST_F(LocalBlobStoreTest, StoredBytesCountWhatIsThereOfOneTenant) {
  EXPECT_EQ(*store_->StoredBytes("t"), 0);
  auto whole = store_->Begin("t", IdOf("hello"), 0);
  ASSERT_TRUE((*whole)->Append("hello").ok());
  ASSERT_TRUE((*whole)->Finish().ok());
  auto begun = store_->Begin("t", IdOf("hello world"), 0);
  ASSERT_TRUE((*begun)->Append("hel").ok());
  EXPECT_EQ(*store_->StoredBytes("t"), 8);
  EXPECT_EQ(*store_->StoredBytes("other"), 0);
  EXPECT_FALSE(store_->StoredBytes("../t").ok());
}

// RLIMIT_FSIZE makes write(2) fail part-way like a full disk does.
TEST_F(LocalBlobStoreTest, AFailedWriteLeavesAResumableUpload) {
  const std::string text(6000, 'z');
  const BlobId blob = IdOf(text);
  auto upload = store_->Begin("t", blob, 0);
  ASSERT_TRUE((*upload)->Append(text.substr(0, 1000)).ok());
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {3000, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_FALSE((*upload)->Append(text.substr(1000)).ok());
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, old_handler);
  upload->reset();
  EXPECT_EQ(store_->Find("t", blob)->committed_bytes, 1000);
  auto resumed = store_->Begin("t", blob, 1000);
  ASSERT_TRUE(resumed.ok());
  EXPECT_TRUE((*resumed)->Append(text.substr(1000)).ok());
  EXPECT_TRUE((*resumed)->Finish().ok());
}

}  // namespace
}  // namespace quantry::server
