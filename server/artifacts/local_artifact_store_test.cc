#include "server/artifacts/local_artifact_store.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/errors.h"
#include "gtest/gtest.h"
#include "server/artifacts/file_ops.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kUid = "123e4567-e89b-42d3-a456-426614174000";

class LocalArtifactStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "artifacts-" + std::to_string(getpid());
    fs::remove_all(root_);
    store_ = *OpenLocalArtifactStore("file://" + root_);
    uri_ = store_->OutputUri("t", kUid, 2);
    const std::string folder = uri_.substr(7);
    fs::create_directories(folder + "/dense");
    std::ofstream(folder + "/manifest.json") << "{\"a\":1}";
    std::ofstream(folder + "/dense/config.json") << "0123456789";
    std::ofstream(root_ + "/outside") << "secret";
    fs::create_symlink(root_ + "/outside", folder + "/link");
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string root_;
  std::string uri_;
  std::unique_ptr<ArtifactStore> store_;
};

TEST_F(LocalArtifactStoreTest, NothingOutsideIsReachable) {
  for (const char* path :
       {"link", "../../../outside", "/etc/passwd", "", "dense/../../x", "a\\b"}) {
    EXPECT_FALSE(store_->Open(uri_, path).ok()) << path;
  }
  for (const std::string& uri :
       {std::string("file:///etc"), std::string(), "file://" + root_, "file://" + root_ + "/..",
        "file://" + root_ + "x", uri_ + "/../../.."}) {
    EXPECT_FALSE(store_->Open(uri, "passwd").ok()) << uri;
  }
}

TEST_F(LocalArtifactStoreTest, DeletesWhatTheJobWroteAndNoMore) {
  EXPECT_TRUE(store_->DeleteJob("t", kUid).ok());
  EXPECT_FALSE(fs::exists(uri_.substr(7)));
  EXPECT_TRUE(fs::exists(root_ + "/outside"));
  EXPECT_TRUE(store_->DeleteJob("t", kUid).ok());
  EXPECT_FALSE(store_->DeleteJob("t", "..").ok());
  EXPECT_FALSE(store_->DeleteJob("..", kUid).ok());
}

TEST_F(LocalArtifactStoreTest, OtherSchemesAreRefused) {
  EXPECT_TRUE(HasReason(OpenLocalArtifactStore("s3://bucket").status(), Reason::kInvalidConfig));
  EXPECT_FALSE(OpenLocalArtifactStore("file://host/x").ok());
}

TEST_F(LocalArtifactStoreTest, AtomicWriteReplaces) {
  ASSERT_TRUE(WriteFileAtomically(root_ + "/f", "one").ok());
  ASSERT_TRUE(WriteFileAtomically(root_ + "/f", "two").ok());
  std::string text;
  std::ifstream(root_ + "/f") >> text;
  EXPECT_EQ(text, "two");
}

}  // namespace
}  // namespace quantry::server
