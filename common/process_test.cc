#include "common/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "common/line_reader.h"
#include "common/testing/dies_with_parent.h"
#include "gtest/gtest.h"

namespace quantry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

ChildOptions Shell(const std::string& script) {
  return {.argv = {"/bin/sh", "-c", script}, .environment = {"PATH=/usr/bin:/bin"}};
}

// Reads a stream to its end, waiting with poll.
std::vector<std::string> ReadAll(int fd, std::size_t max_line = 1024) {
  std::vector<std::string> lines;
  LineReader reader(fd, max_line);
  pollfd wait{.fd = fd, .events = POLLIN, .revents = 0};
  const auto sink = [&](std::string_view line, bool cut) {
    lines.push_back(std::string(line) + (cut ? "..." : ""));
  };
  while (poll(&wait, 1, 10000) > 0 && reader.Drain(sink)) {
  }
  return lines;
}

TEST(ProcessTest, ExitStatusTable) {
  const struct {
    const char* name;
    const char* script;
    int code;
    int signal;
  } cases[] = {
      {"success", "exit 0", 0, 0},
      {"failure", "exit 7", 7, 0},
      {"killed", "kill -9 $$", 0, SIGKILL},
      {"aborted", "kill -6 $$", 0, SIGABRT},
  };
  for (const auto& c : cases) {
    auto child = ChildProcess::Spawn(Shell(c.script));
    ASSERT_TRUE(child.ok()) << c.name << child.status();
    const auto status = child->Wait(seconds(10));
    ASSERT_TRUE(status.has_value()) << c.name;
    EXPECT_EQ(status->code, c.code) << c.name;
    EXPECT_EQ(status->signal, c.signal) << c.name;
  }
}

TEST(ProcessTest, StreamsAreSeparate) {
  auto child = ChildProcess::Spawn(Shell("echo out; echo err >&2; printf tail"));
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(ReadAll(child->stdout_fd()), (std::vector<std::string>{"out", "tail"}));
  EXPECT_EQ(ReadAll(child->stderr_fd()), (std::vector<std::string>{"err"}));
  EXPECT_TRUE(child->Wait(seconds(10))->ok());
}

TEST(ProcessTest, LongLinesAreCut) {
  auto child = ChildProcess::Spawn(Shell("printf '0123456789abcdef\\nshort\\n\\n'"));
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(ReadAll(child->stdout_fd(), 8), (std::vector<std::string>{"01234567...", "short", ""}));
}

// A regular file stands for a writer that is never behind.
TEST(ProcessTest, OneDrainIsBounded) {
  constexpr int kLines = 1 << 20;
  const std::string path = testing::TempDir() + "lines-" + std::to_string(getpid());
  {
    std::ofstream file(path);
    for (int i = 0; i < kLines; ++i) file << "a line\n";
  }
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  LineReader reader(fd, 1024);
  int lines = 0;
  const auto sink = [&](std::string_view, bool) { ++lines; };
  EXPECT_TRUE(reader.Drain(sink));
  EXPECT_GT(lines, 0);
  EXPECT_LT(lines, kLines / 4);
  while (reader.Drain(sink)) {
  }
  EXPECT_EQ(lines, kLines);
  close(fd);
  unlink(path.c_str());
}

TEST(ProcessTest, MissingProgramIsNamed) {
  const auto child = ChildProcess::Spawn({.argv = {"/no/such/program"}, .environment = {}});
  EXPECT_EQ(child.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(child.status().message().find("/no/such/program"), std::string::npos);
}

TEST(ProcessTest, EnvironmentIsOnlyWhatIsGiven) {
  setenv("QUANTRY_TEST_SECRET", "x", 1);
  auto options = Shell("env");
  options.environment = {"A=1", "PATH=/usr/bin:/bin"};
  auto child = ChildProcess::Spawn(options);
  ASSERT_TRUE(child.ok());
  for (const std::string& line : ReadAll(child->stdout_fd())) {
    EXPECT_EQ(line.find("SECRET"), std::string::npos) << line;
  }
}

TEST(ProcessTest, CleanEnvironmentKeepsNamesAndPrefixes) {
  setenv("QT_KEEP", "1", 1);
  setenv("QTP_ONE", "2", 1);
  setenv("AWS_SECRET_ACCESS_KEY", "3", 1);
  const std::string_view keep[] = {"QT_KEEP", "QTP_*"};
  auto kept = CleanEnvironment(keep);
  std::sort(kept.begin(), kept.end());
  EXPECT_EQ(kept, (std::vector<std::string>{"QTP_ONE=2", "QT_KEEP=1"}));
}

TEST(ProcessTest, OtherDescriptorsAreClosed) {
  const int leaked = open("/dev/null", O_RDONLY);  // no O_CLOEXEC on purpose
  ASSERT_GE(leaked, 0);
  auto child = ChildProcess::Spawn(Shell("ls /proc/self/fd | wc -l"));
  ASSERT_TRUE(child.ok());
  // 0, 1, 2 and ls's own handle of the folder.
  EXPECT_EQ(ReadAll(child->stdout_fd()), (std::vector<std::string>{"4"}));
  close(leaked);
}

TEST(ProcessTest, LimitsReachTheChild) {
  auto options = Shell("ulimit -n");
  options.limits = {{RLIMIT_NOFILE, 123}};
  auto child = ChildProcess::Spawn(options);
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(ReadAll(child->stdout_fd()), (std::vector<std::string>{"123"}));
}

TEST(ProcessTest, WaitWithDeadlineReportsRunning) {
  auto child = ChildProcess::Spawn(Shell("exec sleep 100"));
  ASSERT_TRUE(child.ok());
  EXPECT_FALSE(child->Wait(milliseconds(1)).has_value());
  EXPECT_EQ(child->Terminate(seconds(10)).signal, SIGTERM);
}

TEST(ProcessTest, TerminateKillsWhoIgnoresSigterm) {
  auto child = ChildProcess::Spawn(Shell("trap '' TERM; echo ready; while :; do sleep 1; done"));
  ASSERT_TRUE(child.ok());
  pollfd wait{.fd = child->stdout_fd(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(poll(&wait, 1, 10000), 1);
  EXPECT_EQ(child->Terminate(milliseconds(50)).signal, SIGKILL);
}

TEST(ProcessTest, GrandchildrenGoToo) {
  auto child = ChildProcess::Spawn(Shell("sleep 1000 & echo $!; exit 0"));
  ASSERT_TRUE(child.ok());
  pollfd wait{.fd = child->stdout_fd(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(poll(&wait, 1, 10000), 1);
  ASSERT_TRUE(child->Wait(seconds(10)).has_value());
  // The pipe's write end was held by the grandchild: its end proves the kill.
  const auto lines = ReadAll(child->stdout_fd());
  ASSERT_EQ(lines.size(), 1u);
}

TEST(ProcessTest, ChildDiesWithItsParent) {
  EXPECT_TRUE(DiesWithItsParent([] { return ChildProcess::Spawn(Shell("exec sleep 1000")); }));
}

TEST(ProcessTest, SignalMaskAndHandlersAreReset) {
  signal(SIGPIPE, SIG_IGN);
  auto child = ChildProcess::Spawn(Shell("kill -PIPE $$; echo alive"));
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(child->Wait(seconds(10))->signal, SIGPIPE);
}

}  // namespace
}  // namespace quantry
