#include "worker/engine/base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>

#include "worker/engine/base/error.h"

namespace quantry::engine {
namespace {

namespace fs = std::filesystem;

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(testing::TempDir()) /
           ("file_test_" + std::to_string(::getpid()) + "_" +
            testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string Path(const std::string& name) const { return (dir_ / name).string(); }

  fs::path dir_;
};

EngineError ErrorOf(const std::function<void()>& body) {
  try {
    body();
  } catch (const EngineError& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return EngineError(FailureClass::kBug, "", "");
}

TEST_F(FileTest, WritesAtomicallyAndReadsBack) {
  WriteFileAtomically(Path("a"), "one");
  WriteFileAtomically(Path("a"), "two");
  EXPECT_EQ(ReadFile(Path("a"), 3, "X"), "two");
  EXPECT_FALSE(fs::exists(Path("a.partial")));
  EXPECT_NO_THROW(CheckReadable(Path("a"), 3, "X"));
}

TEST_F(FileTest, RefusesWhatIsNotAReadableFile) {
  WriteFileAtomically(Path("four"), "1234");
  ASSERT_EQ(::mkfifo(Path("fifo").c_str(), 0600), 0);
  for (const auto& path : {Path("absent"), dir_.string(), Path("fifo"), Path("four")}) {
    const EngineError error = ErrorOf([&] { ReadFile(path, 3, "INVALID_X"); });
    EXPECT_EQ(error.reason, "INVALID_X") << path;
    EXPECT_STREQ(ErrorOf([&] { CheckReadable(path, 3, "INVALID_X"); }).what(), error.what());
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
  }
}

TEST_F(FileTest, DiskFullNamesPathAndBytes) {
  if (::access("/dev/full", W_OK) != 0) GTEST_SKIP() << "no /dev/full";
  const int fd = ::open("/dev/full", O_WRONLY);
  const std::string data(100, 'x');
  const EngineError error =
      ErrorOf([&] { WriteFully(fd, data.data(), data.size(), "/somewhere/shard", 12345); });
  ::close(fd);
  EXPECT_EQ(error.reason, "DISK_FULL");
  EXPECT_EQ(error.failure_class, FailureClass::kEnvironment);
  EXPECT_EQ(error.metadata.at("path"), "/somewhere/shard");
  EXPECT_EQ(error.metadata.at("bytes_wanted"), "12345");
}

TEST_F(FileTest, AFailedWriteLeavesTheOldFile) {
  WriteFileAtomically(Path("a"), "old");
  struct rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {.rlim_cur = 1024, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const EngineError error =
      ErrorOf([&] { WriteFileAtomically(Path("a"), std::string(1 << 20, 'n')); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(error.reason, "DISK_FULL");
  EXPECT_EQ(error.metadata.at("bytes_wanted"), "1048576");
  EXPECT_NE(std::string(error.what()).find("may have: 1024"), std::string::npos) << error.what();
  EXPECT_EQ(ReadFile(Path("a"), 10, "X"), "old");
  EXPECT_FALSE(fs::exists(Path("a.partial")));
}

}  // namespace
}  // namespace quantry::engine
