#include "client/cli/hold.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include "common/file_identity.h"

namespace quantry::cli {
namespace {

class HoldTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string folder = ::testing::TempDir() + "/hold-XXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    path_ = folder_ + "/file";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  int Open() const { return open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600); }

  // Opens path_, which from then on names nothing.
  int OpenAndMove() const {
    const int fd = Open();
    std::filesystem::rename(path_, path_ + "." + std::to_string(fd));
    return fd;
  }

  std::string folder_, path_;
};

TEST_F(HoldTest, WhatNeverExistsIsLookedForAHundredTimes) {
  int looks = 0;
  UniqueFd fd(Open());  // closed at the first look
  const Holder holder = OpenAndHold(
      path_,
      [&] {
        ++looks;
        errno = ENOENT;
        return -1;
      },
      &fd);
  EXPECT_EQ(errno, ENOENT);
  EXPECT_EQ(holder, Holder::kNobody);
  EXPECT_EQ(looks, 100);
  EXPECT_FALSE(fd.ok());
}

TEST_F(HoldTest, WhatCannotBeOpenedIsLookedForOnce) {
  int looks = 0;
  UniqueFd fd;
  const Holder holder = OpenAndHold(
      path_,
      [&] {
        ++looks;
        errno = EACCES;
        return -1;
      },
      &fd);
  EXPECT_EQ(errno, EACCES);
  EXPECT_EQ(holder, Holder::kNobody);
  EXPECT_EQ(looks, 1);
}

TEST_F(HoldTest, WhatIsMovedAfterItWasOpenedIsLookedForAgain) {
  int looks = 0;
  UniqueFd fd;
  const auto open_path = [&] { return ++looks == 1 ? OpenAndMove() : Open(); };
  EXPECT_EQ(OpenAndHold(path_, open_path, &fd), Holder::kUs);
  EXPECT_EQ(looks, 2);
  EXPECT_TRUE(IsAt(fd.get(), path_));
  const UniqueFd other(Open());
  EXPECT_NE(flock(other.get(), LOCK_EX | LOCK_NB), 0);
}

TEST_F(HoldTest, WhatIsAlwaysSomethingElseIsOursAtLast) {
  int looks = 0;
  UniqueFd fd;
  const auto open_path = [&] {
    ++looks;
    return OpenAndMove();
  };
  EXPECT_EQ(OpenAndHold(path_, open_path, &fd), Holder::kUs);
  EXPECT_EQ(looks, 100);
  EXPECT_TRUE(fd.ok());
}

TEST_F(HoldTest, AnotherDescriptorHoldsIt) {
  const UniqueFd other(Open());
  ASSERT_EQ(flock(other.get(), LOCK_EX | LOCK_NB), 0);
  UniqueFd fd;
  EXPECT_EQ(OpenAndHold(
                path_, [&] { return Open(); }, &fd),
            Holder::kOther);
  EXPECT_TRUE(fd.ok());
}

}  // namespace
}  // namespace quantry::cli
