#include "common/digest.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/errors.h"

namespace quantry {
namespace {

// FIPS 180-4 examples.
constexpr char kEmpty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

TEST(Sha256Test, KnownVectors) {
  EXPECT_EQ(Sha256Hex(""), kEmpty);
  EXPECT_EQ(Sha256Hex("abc"), kAbc);
}

TEST(Sha256Test, PiecesGiveTheSameAndFinishResets) {
  Sha256 hash;
  hash.Update("a");
  hash.Update("");
  hash.Update("bc");
  EXPECT_EQ(hash.FinishHex(), kAbc);
  EXPECT_EQ(hash.FinishHex(), kEmpty);
  hash.Update("a");
  Sha256 moved = std::move(hash);
  moved.Update("bc");
  EXPECT_EQ(moved.FinishHex(), kAbc);
}

TEST(Sha256Test, Hex) {
  EXPECT_TRUE(IsSha256Hex(kAbc));
  EXPECT_FALSE(IsSha256Hex(""));
  EXPECT_FALSE(IsSha256Hex(std::string(64, 'A')));
  EXPECT_FALSE(IsSha256Hex(std::string(63, 'a')));
  EXPECT_FALSE(IsSha256Hex(std::string(63, 'a').append("/")));
}

TEST(Sha256FileTest, ReadsAllOfIt) {
  std::string path =
      std::filesystem::temp_directory_path() / ("quantry_digest_test_" + std::to_string(getpid()));
  std::string data(3'000'001, 'x');
  std::ofstream(path, std::ios::binary) << data;
  auto digest = Sha256File(path);
  std::filesystem::remove(path);
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(digest->size_bytes, 3'000'001);
  EXPECT_EQ(digest->sha256, Sha256Hex(data));
}

TEST(Sha256FileTest, Errors) {
  auto missing = Sha256File("/nonexistent/file");
  EXPECT_TRUE(HasReason(missing.status(), Reason::kFileNotFound)) << missing.status();
  EXPECT_EQ(MetadataOf(missing.status(), "path"), "/nonexistent/file");
  EXPECT_TRUE(HasReason(Sha256File("/").status(), Reason::kStorageError));
}

}  // namespace
}  // namespace quantry
