#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "common/errors.h"
#include "common/ids.h"
#include "common/storage.h"
#include "server/artifacts/artifact_store.h"

// What every implementation of ArtifactStore must do. An implementation's test
// includes this once and instantiates it:
//   INSTANTIATE_TEST_SUITE_P(Stores, ArtifactStoreSuite, Values(root), RootName);
namespace quantry::server {

struct ArtifactRoot {
  std::string name;
  // The URI of an empty root. NOT_FOUND: cannot be tested here, and why.
  std::function<absl::StatusOr<std::string>()> make;
};

inline void PrintTo(const ArtifactRoot& root, std::ostream* out) { *out << root.name; }
inline std::string RootName(const ::testing::TestParamInfo<ArtifactRoot>& info) {
  return info.param.name;
}

class ArtifactStoreSuite : public ::testing::TestWithParam<ArtifactRoot> {
 protected:
  void SetUp() override {
    auto root = GetParam().make();
    if (absl::IsNotFound(root.status())) GTEST_SKIP() << root.status().message();
    ASSERT_TRUE(root.ok()) << root.status();
    root_ = *root;
    auto store = OpenArtifactStore(root_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    uri_ = store_->OutputUri("acme", uid_, 2);
    Write(uri_, "manifest.json", "{\"a\":1}");
    Write(uri_, "dense/config.json", "0123456789");
  }
  void TearDown() override {
    if (store_ != nullptr) {
      EXPECT_TRUE(store_->DeleteJob("acme", uid_).ok());
    }
  }

  // As a worker writes it.
  void Write(const std::string& uri, const std::string& path, const std::string& bytes) {
    auto storage = OpenStorage(uri);
    ASSERT_TRUE(storage.ok()) << storage.status();
    const auto written = (*storage)->Write(path, bytes);
    ASSERT_TRUE(written.ok()) << written;
  }
  bool Exists(const std::string& uri, const std::string& path) {
    auto storage = OpenStorage(uri);
    EXPECT_TRUE(storage.ok());
    const auto found = (*storage)->Stat(path);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() && found->has_value();
  }
  std::string ReasonOfOpen(const std::string& uri, const std::string& path) {
    auto reader = store_->Open(uri, path);
    return reader.ok() ? "OK" : ReasonOf(reader.status());
  }

  const std::string uid_ = NewUuid4();
  std::string root_;
  std::string uri_;
  std::unique_ptr<ArtifactStore> store_;
};

TEST_P(ArtifactStoreSuite, PrefixesOfAttemptsDiffer) {
  EXPECT_NE(store_->OutputUri("acme", uid_, 1), store_->OutputUri("acme", uid_, 2));
  EXPECT_NE(store_->OutputUri("acme", uid_, 1), store_->CheckpointUri("acme", uid_, 1));
  EXPECT_NE(store_->OutputUri("acme", uid_, 1), store_->OutputUri("other", uid_, 1));
}

TEST_P(ArtifactStoreSuite, ReadsFiles) {
  EXPECT_EQ(*store_->ReadAll(uri_, "manifest.json", 100), "{\"a\":1}");
  auto reader = store_->Open(uri_, "dense/config.json");
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->size_bytes(), 10);
  EXPECT_EQ(*(*reader)->ReadAt(3, 4), "3456");
  EXPECT_EQ(*(*reader)->ReadAt(7, 2), "78");
  EXPECT_EQ(*(*reader)->ReadAt(0, 2), "01");
  EXPECT_EQ(*(*reader)->ReadAt(8, 100), "89");
  EXPECT_EQ(*(*reader)->ReadAt(10, 1), "");
  EXPECT_EQ(*(*reader)->ReadAt(1000, 1), "");
}

TEST_P(ArtifactStoreSuite, StreamsLargeFilesInOrder) {
  std::string bytes;
  for (int i = 0; bytes.size() < (20u << 20); ++i) bytes += std::to_string(i) + "\n";
  Write(uri_, "model.safetensors", bytes);
  auto reader = store_->Open(uri_, "model.safetensors");
  ASSERT_TRUE(reader.ok()) << reader.status();
  ASSERT_EQ((*reader)->size_bytes(), static_cast<std::int64_t>(bytes.size()));
  std::string read;
  while (read.size() < bytes.size()) {
    auto chunk = (*reader)->ReadAt(static_cast<std::int64_t>(read.size()), 512 << 10);
    ASSERT_TRUE(chunk.ok()) << chunk.status();
    ASSERT_FALSE(chunk->empty());
    read += *chunk;
  }
  EXPECT_TRUE(read == bytes);
  const std::int64_t middle = 9 << 20;  // back, and over the edge of what was read ahead
  EXPECT_EQ(*(*reader)->ReadAt(middle, 100), bytes.substr(middle, 100));
  EXPECT_EQ(*(*reader)->ReadAt(middle + 50, 100), bytes.substr(middle + 50, 100));
}

TEST_P(ArtifactStoreSuite, EmptyFiles) {
  Write(uri_, "empty", "");
  EXPECT_EQ(*store_->ReadAll(uri_, "empty", 0), "");
}

TEST_P(ArtifactStoreSuite, MissingFilesAndFoldersAreNotFound) {
  EXPECT_EQ(ReasonOfOpen(uri_, "none"), "ARTIFACT_NOT_FOUND");
  EXPECT_EQ(ReasonOfOpen(uri_, "dense"), "ARTIFACT_NOT_FOUND");
  EXPECT_EQ(ReasonOfOpen(store_->OutputUri("acme", uid_, 3), "manifest.json"),
            "ARTIFACT_NOT_FOUND");
}

TEST_P(ArtifactStoreSuite, HostilePathsAreRefused) {
  for (const char* path : {"../../../outside", "/etc/passwd", "", "dense/../../x", "a\\b"}) {
    EXPECT_EQ(ReasonOfOpen(uri_, path), "INVALID_ARGUMENT") << path;
  }
}

TEST_P(ArtifactStoreSuite, NothingOutsideTheRootIsReachable) {
  const std::string bare = root_.substr(0, root_.find('?'));
  const std::string options = root_.substr(bare.size());
  for (const std::string& uri :
       {std::string("file:///etc"), std::string("s3://elsewhere/x"), std::string(), root_,
        bare + "x/y" + options, bare + "/.." + options, uri_ + "/../../..",
        JoinUri(uri_, "../../..")}) {
    EXPECT_FALSE(store_->Open(uri, "passwd").ok()) << uri;
  }
}

TEST_P(ArtifactStoreSuite, LargeFilesAreNotReadWhole) {
  EXPECT_TRUE(
      HasReason(store_->ReadAll(uri_, "dense/config.json", 9).status(), Reason::kResourceLimit));
}

TEST_P(ArtifactStoreSuite, DeletesWhatTheJobWroteAndNoMore) {
  const std::string other = NewUuid4();
  const std::string kept = store_->OutputUri("acme", other, 1);
  const std::string checkpoint = store_->CheckpointUri("acme", uid_, 2);
  Write(kept, "manifest.json", "{}");
  Write(checkpoint, "state", "s");
  EXPECT_TRUE(store_->DeleteJob("acme", uid_).ok());
  EXPECT_FALSE(Exists(uri_, "manifest.json"));
  EXPECT_FALSE(Exists(uri_, "dense/config.json"));
  EXPECT_FALSE(Exists(checkpoint, "state"));
  EXPECT_TRUE(Exists(kept, "manifest.json"));
  EXPECT_TRUE(store_->DeleteJob("acme", uid_).ok()) << "deleting twice is fine";
  EXPECT_FALSE(store_->DeleteJob("acme", "..").ok());
  EXPECT_FALSE(store_->DeleteJob("..", uid_).ok());
  EXPECT_TRUE(store_->DeleteJob("acme", other).ok());
}

TEST_P(ArtifactStoreSuite, ASecondStoreSeesTheSame) {
  auto again = OpenArtifactStore(root_);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*(*again)->ReadAll(uri_, "manifest.json", 100), "{\"a\":1}");
}

}  // namespace quantry::server
