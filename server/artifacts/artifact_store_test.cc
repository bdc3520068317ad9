// The conformance suite over every implementation, and what is wrong with roots.
#include "server/artifacts/artifact_store.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "tests/conformance/artifact_store_suite.h"
#include "tests/support/s3_test_server.h"

namespace quantry::server {
namespace {

absl::StatusOr<std::string> LocalRoot() {
  static int count = 0;
  const std::string folder = ::testing::TempDir() + "artifact-root-" + std::to_string(getpid()) +
                             "-" + std::to_string(++count);
  std::filesystem::remove_all(folder);
  return "file://" + folder;
}

absl::StatusOr<std::string> S3Root() {
  static int count = 0;
  auto bucket = S3TestBucket();
  if (!bucket.ok()) return bucket;
  return JoinUri(*bucket, "root-" + std::to_string(++count));
}

// The empty prefix QUANTRY_TEST_STORAGE_URI names.
absl::StatusOr<std::string> NamedRoot() {
  static int count = 0;
  const char* uri = std::getenv("QUANTRY_TEST_STORAGE_URI");
  if (uri == nullptr) return absl::NotFoundError("QUANTRY_TEST_STORAGE_URI is not set");
  return JoinUri(uri, "root-" + std::to_string(++count));
}

INSTANTIATE_TEST_SUITE_P(Stores, ArtifactStoreSuite,
                         ::testing::Values(ArtifactRoot{"Local", LocalRoot},
                                           ArtifactRoot{"S3", S3Root},
                                           ArtifactRoot{"named", NamedRoot}),
                         RootName);

TEST(LiesBelowTest, OnlyPlainPathsWithTheSameQuery) {
  const struct {
    const char* folder;
    const char* uri;
    bool below;
  } cases[] = {
      {"file:///a/b", "file:///a/b", true},
      {"file:///a/b", "file:///a/b/c/d", true},
      {"file:///a/b%20c", "file:///a/b%20c", true},  // as the store wrote it
      {"file:///a/b", "file:///a", false},
      {"file:///a/b", "file:///a/bc", false},
      {"file:///a/b", "file:///a/b/", false},
      {"file:///a/b", "file:///a/b/../c", false},
      {"file:///a/b", "file:///a/b/%2e%2e/c", false},
      {"file:///a/b", "file:///a/b/c?x=1", false},
      {"s3://a/b?region=x", "s3://a/b/c?region=x", true},
      {"s3://a/b?region=x", "s3://a/b/c", false},
      {"s3://a/b?region=x", "s3://a/b/c?region=x&endpoint_override=evil", false},
      {"s3://a/b?region=x", "s3://a/b/c?endpoint_override=evil?region=x", false},
      {"s3://a/b", "", false},
  };
  for (const auto& c : cases) EXPECT_EQ(LiesBelow(c.folder, c.uri), c.below) << c.uri;
}

TEST(ArtifactRootTest, WrongRootsAreToldAtTheStart) {
  for (const char* root :
       {"", "/folder", "file://host/x", "http://x/y", "s3://key:secret@bucket/x",
        "s3://bucket/x?secret_key=y", "s3://bucket/%2e%2e", "gs://key:secret@bucket/x",
        "gs://bucket/x?endpoint_override=127.0.0.1:1", "abfs://box:secret@account/x",
        "abfs://box@account.dfs.core.windows.net/x?sv=1&sig=secret@", "abfs://box/x",
        "s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:1&region=us-east-1"}) {
    const auto store = OpenArtifactStore(root);
    EXPECT_TRUE(HasReason(store.status(), Reason::kInvalidConfig)) << root << store.status();
    EXPECT_EQ(std::string(store.status().message()).find("secret@"), std::string::npos) << root;
  }
}

TEST(ArtifactRootTest, AMissingBucketIsToldAtTheStart) {
  auto bucket = S3TestBucket();
  if (absl::IsNotFound(bucket.status())) GTEST_SKIP() << bucket.status().message();
  ASSERT_TRUE(bucket.ok()) << bucket.status();
  std::string missing = *bucket;
  missing.replace(missing.find("quantry-test"), 12, "no-such-bucket");
  EXPECT_TRUE(HasReason(OpenArtifactStore(missing).status(), Reason::kInvalidConfig));
}

}  // namespace
}  // namespace quantry::server

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const int result = RUN_ALL_TESTS();
  quantry::FinalizeStorage();
  return result;
}
