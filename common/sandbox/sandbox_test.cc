// By trying: testing/probe.cc runs confined, and once more unconfined to show
// that it is the sandbox that stops it.
#include "common/sandbox/sandbox.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/line_reader.h"
#include "common/process.h"
#include "common/sandbox/program_files.h"
#include "common/testing/child_output.h"
#include "common/testing/dies_with_parent.h"
#include "gtest/gtest.h"

namespace quantry {
namespace {

namespace fs = std::filesystem;
using Results = std::map<std::string, std::string>;

class SandboxTest : public testing::Test {
 protected:
  SandboxTest() {
    char name[] = "/tmp/quantry-sandbox-XXXXXX";
    root_ = mkdtemp(name);
    for (const char* folder : {"in", "out", "elsewhere"}) fs::create_directory(root_ / folder);
    for (const char* file : {"in/model", "out/old", "elsewhere/secret", "elsewhere/linked"}) {
      std::ofstream(root_ / file) << "text";
    }
    fs::create_symlink(root_ / "elsewhere/linked", root_ / "in/link");
    options_.program = SANDBOX_PROBE;
    options_.read = {root_ / "in"};
    options_.write = {root_ / "out"};
    options_.max_file_bytes = 1 << 20;
  }
  ~SandboxTest() override { fs::remove_all(root_); }

  std::string Path(const char* relative) const { return root_ / relative; }

  Results Run(const std::vector<std::string>& attempts, bool confined = true) {
    ChildOptions child_options{.argv = {SANDBOX_PROBE}, .environment = {"ONLY=this"}};
    child_options.argv.insert(child_options.argv.end(), attempts.begin(), attempts.end());
    child_options.working_directory = root_ / "out";
    auto sandbox = Sandbox::Prepare(options_);
    EXPECT_TRUE(sandbox.ok()) << sandbox.status();
    if (confined) child_options.sandbox = &*sandbox;
    auto child = ChildProcess::Spawn(child_options);
    EXPECT_TRUE(child.ok()) << child.status();
    if (!child.ok()) return {};
    report_ = child->sandbox_report();
    Results results;
    LineReader reader(child->stdout_fd(), 4096);
    pollfd wait{.fd = child->stdout_fd(), .events = POLLIN, .revents = 0};
    const auto sink = [&](std::string_view line, bool) {
      const std::size_t space = line.find(' ');
      results[std::string(line.substr(0, space))] = line.substr(space + 1);
    };
    while (poll(&wait, 1, 20000) > 0 && reader.Drain(sink)) {
    }
    EXPECT_TRUE(child->Wait(std::chrono::seconds(20))->ok());
    return results;
  }

  fs::path root_;
  SandboxOptions options_;
  SandboxReport report_;
};

struct Door {
  const char* attempt;
  // Any kernel lets an unconfined process do it, root or not.
  bool open_to_others;
};

// unshare comes last: it changes what the process may do.
constexpr Door kDoors[] = {
    {"tcp", true},      {"tcp6", true},         {"udp", true},       {"unix", true},
    {"netlink", true},  {"fork", true},         {"symlink", true},   {"signal-parent", true},
    {"setuid", true},   {"mount", false},       {"ptrace", false},   {"peek", false},
    {"bpf", false},     {"keyctl", false},      {"kexec", false},    {"reboot", false},
    {"perf", false},    {"userfaultfd", false}, {"io-uring", false}, {"keep-after-parent", true},
    {"unshare", false},
};

TEST_F(SandboxTest, SystemCallsThatNeedNoFile) {
  std::vector<std::string> attempts;
  for (const Door& door : kDoors) attempts.emplace_back(door.attempt);
  const Results confined = Run(attempts);
  const Results free = Run(attempts, /*confined=*/false);
  for (const Door& door : kDoors) {
    EXPECT_EQ(confined.at(door.attempt), "ENOSYS") << door.attempt;
    EXPECT_TRUE(!door.open_to_others || free.at(door.attempt) == "ok") << door.attempt;
  }
}

TEST_F(SandboxTest, FilesOutside) {
  if (LandlockRules::Abi() == 0) GTEST_SKIP() << "this kernel has no Landlock";
  const struct {
    std::string attempt, confined;
  } cases[] = {
      {"read=" + Path("in/model"), "ok"},
      {"read=" + Path("in/link"), "ok"},
      {"read=" + Path("elsewhere/linked"), "ok"},  // the same file
      {"read=" + Path("out/old"), "ok"},
      {"read=/proc/self/status", "ok"},
      {"write=" + Path("out/new"), "ok"},
      {"write=/dev/null", "ok"},
      {"read=" + Path("elsewhere/secret"), "EACCES"},
      {"read=/etc/passwd", "EACCES"},
      {"read=/proc/" + std::to_string(getpid()) + "/environ", "EACCES"},
      {"write=" + Path("in/model"), "EACCES"},
      {"write=" + Path("in/new"), "EACCES"},
      {"write=" + Path("elsewhere/new"), "EACCES"},
      {"write=/tmp/quantry-escaped", "EACCES"},
      {"link=" + Path("in/model"), "ENOSYS"},
      {"fifo=" + Path("out/fifo"), "ENOSYS"},
  };
  for (const auto& c : cases) {
    const std::string name = c.attempt.substr(0, c.attempt.find('='));
    EXPECT_EQ(Run({c.attempt}).at(name), c.confined) << c.attempt;
    if (c.confined != "EACCES" || geteuid() != 0) continue;
    EXPECT_EQ(Run({c.attempt}, /*confined=*/false).at(name), "ok") << c.attempt;
  }
  fs::remove("/tmp/quantry-escaped");
}

// A link made after its path was found to lie below a root, by whoever may
// write there, opens nothing.
TEST_F(SandboxTest, InputsThatLeadOutOfTheirFolders) {
  if (LandlockRules::Abi() == 0) GTEST_SKIP() << "this kernel has no Landlock";
  fs::create_directory_symlink("in", root_ / "alias");
  fs::create_directory_symlink("elsewhere", root_ / "swapped");
  fs::create_symlink("in/model", root_ / "text");
  fs::create_symlink("elsewhere/secret", root_ / "swapped-text");
  options_.read = {Path("alias"), Path("swapped"), Path("text"), Path("swapped-text"),
                   Path("absent")};
  options_.within = {Path("alias"), Path("none")};
  for (const char* file : {"in/model", "alias/model", "text"}) {
    EXPECT_EQ(Run({"read=" + Path(file)}).at("read"), "ok") << file;
  }
  for (const char* file :
       {"in/link", "alias/link", "elsewhere/secret", "swapped/secret", "swapped-text"}) {
    EXPECT_EQ(Run({"read=" + Path(file)}).at("read"), "EACCES") << file;
  }
  options_.within.emplace_back(Path("elsewhere"));
  for (const char* file : {"in/link", "swapped/secret", "swapped-text"}) {
    EXPECT_EQ(Run({"read=" + Path(file)}).at("read"), "ok") << file;
  }
}

TEST_F(SandboxTest, InputsKeepContentAndMode) {
  const std::string file = Path("in/model");
  chmod(file.c_str(), 0640);
  const Results results =
      Run({"truncate=" + file, "truncate-path=" + file, "chmod=" + file, "chown=" + file});
  for (const auto& [name, result] : results) EXPECT_NE(result, "ok") << name;
  EXPECT_EQ(results.size(), 4u);
  EXPECT_EQ(fs::file_size(file), 4u);
  struct stat info {};
  ASSERT_EQ(stat(file.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
}

TEST_F(SandboxTest, OtherPrograms) {
  if (LandlockRules::Abi() == 0) GTEST_SKIP() << "this kernel has no Landlock";
  fs::copy_file("/bin/true", root_ / "out/own");
  for (const std::string& program : {std::string("/bin/true"), Path("out/own")}) {
    EXPECT_EQ(Run({"exec=" + program}).at("exec"), "EACCES") << program;
    EXPECT_TRUE(Run({"exec=" + program}, /*confined=*/false).empty()) << program;
  }
}

TEST_F(SandboxTest, Limits) {
  const Results results = Run({"beyond=" + Path("out/big") + ":1048576", "raise-files",
                               "core-limit", "descriptors", "capabilities", "no-new-privileges"});
  EXPECT_EQ(results.at("beyond"), "EFBIG");
  EXPECT_EQ(results.at("raise-files"), "EPERM");
  EXPECT_EQ(results.at("core-limit"), "0");
  EXPECT_EQ(results.at("descriptors"), "3");
  EXPECT_EQ(results.at("capabilities"), "0000000000000000 0000000000000000");
  EXPECT_EQ(results.at("no-new-privileges"), "1");
  EXPECT_EQ(Run({"beyond=" + Path("out/big") + ":1048576"}, false).at("beyond"), "ok");
}

TEST_F(SandboxTest, WhatAnEngineNeeds) {
  const Results results = Run({"thread", "signal-self"});
  EXPECT_EQ(results.at("thread"), "ok");
  EXPECT_EQ(results.at("signal-self"), "ok");
}

// What the driver does while it starts, and takes a refusal of for its own failure.
TEST_F(SandboxTest, WhatAGpusDriverNeeds) {
  const std::vector<std::string> attempts = {"name-thread", "listen-abstractly", "memory-file"};
  const Results without = Run(attempts);
  EXPECT_EQ(without.at("listen-abstractly"), "ENOSYS");
  EXPECT_EQ(without.at("name-thread"), LandlockRules::Abi() > 0 ? "EACCES" : "ok");
  options_.gpu = true;
  for (const auto& [name, result] : Run(attempts)) EXPECT_EQ(result, "ok") << name;
  if (LandlockRules::Abi() == 0) return;
  const std::string others = "/proc/" + std::to_string(getpid());
  EXPECT_EQ(Run({"write=" + others + "/comm"}).at("write"), "EACCES");
  EXPECT_EQ(Run({"write=" + others + "/task/" + std::to_string(getpid()) + "/comm"}).at("write"),
            "EACCES");
}

TEST_F(SandboxTest, ANetworkWithoutInterfaces) {
  const Results results = Run({"interfaces"});
  if (!report_.network_namespace) GTEST_SKIP() << "no namespaces for this account here";
  EXPECT_EQ(results.at("interfaces"), "0");
}

TEST_F(SandboxTest, AnotherAccount) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  const auto nobody = FindIdentity("nobody");
  ASSERT_TRUE(nobody.ok()) << nobody.status();
  options_.identity = *nobody;
  chmod(root_.c_str(), 0700);
  EXPECT_EQ(ClosedFolder(*nobody, Path("out")), root_.native());
  chmod(root_.c_str(), 0755);
  EXPECT_EQ(ClosedFolder(*nobody, Path("out")), "");
  std::ofstream(root_ / "in/private") << "text";
  chmod(Path("in/private").c_str(), 0600);
  // The program too must be readable for that account.
  fs::copy_file(SANDBOX_PROBE, root_ / "probe");
  options_.program = root_ / "probe";
  const auto sandbox = Sandbox::Prepare(options_);
  ASSERT_TRUE(sandbox.ok()) << sandbox.status();
  ChildOptions child_options{.argv = {root_ / "probe", "account", "capabilities", "thread",
                                      "read=" + Path("in/private"), "write=" + Path("out/new")},
                             .environment = {}};
  child_options.sandbox = &*sandbox;
  auto child = ChildProcess::Spawn(child_options);
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_TRUE(child->sandbox_report().own_account);
  EXPECT_EQ(OutputOf(*child), "account " + std::to_string(nobody->uid) + " " +
                                  std::to_string(nobody->gid) +
                                  " \ncapabilities 0000000000000000 0000000000000000\nthread ok\n"
                                  "read EACCES\nwrite EACCES\n");
}

// Changed credentials clear a parent-death signal set too early.
TEST_F(SandboxTest, DiesWithItsParent) {
  EXPECT_TRUE(DiesWithItsParent([this] {
    const auto sandbox = Sandbox::Prepare(options_);
    ChildOptions child_options{.argv = {SANDBOX_PROBE, "wait"}, .environment = {}};
    if (sandbox.ok()) child_options.sandbox = &*sandbox;
    return ChildProcess::Spawn(child_options);
  }));
}

TEST(ProgramFilesTest, ReadsElfAndRefusesScripts) {
  const auto files = ReadProgramFiles(SANDBOX_PROBE);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_TRUE(fs::exists(files->interpreter)) << files->interpreter;
  const std::string script = testing::TempDir() + "script-" + std::to_string(getpid());
  const struct {
    const char* name;
    std::string content;
  } cases[] = {{"script", "#!/bin/sh\n"},
               {"empty", ""},
               {"cut",
                "\x7f"
                "ELF\x02\x01"}};
  for (const auto& c : cases) {
    std::ofstream(script) << c.content;
    EXPECT_TRUE(absl::IsInvalidArgument(ReadProgramFiles(script).status())) << c.name;
  }
  fs::remove(script);
  EXPECT_TRUE(absl::IsNotFound(ReadProgramFiles("/no/such/program").status()));
}

TEST(SandboxReportTest, Text) {
  EXPECT_EQ(SandboxReport{}.Text(), "seccomp");
  EXPECT_EQ((SandboxReport{7, true, true}.Text()),
            "seccomp, landlock 7, network namespace, account");
}

}  // namespace
}  // namespace quantry
