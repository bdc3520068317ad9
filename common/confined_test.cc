#include "common/confined.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <thread>

#include "gtest/gtest.h"

namespace quantry {
namespace {

namespace fs = std::filesystem;

// From now on a system call fails with `error` on this thread: openat2 as under Docker's old
// profile, or any as where a disk is ill.
void TakeAway(unsigned call, int error) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{static_cast<unsigned short>(std::size(filter)), filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    std::abort();
  }
}

// Over openat2, and without it: the errno it fails with, 0 = as the machine has it.
class ConfinedTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    base_ = testing::TempDir() + "confined-" + std::to_string(getpid());
    fs::remove_all(base_);
    fs::create_directories(base_ + "/allowed/model");
    fs::create_directories(base_ + "/allowed/cache");
    fs::create_directories(base_ + "/outside");
    std::ofstream(base_ + "/outside/secret") << "s";
    std::ofstream(base_ + "/allowed/cache/blob") << "b";
    std::ofstream(base_ + "/allowed/model/config.json") << "{}";
    fs::create_symlink("../cache/blob", base_ + "/allowed/model/weights");
  }
  void TearDown() override { fs::remove_all(base_); }

  // What `call` returns when openat2 is as the case has it.
  template <typename Call>
  auto Run(const Call& call) -> decltype(call()) {
    if (GetParam() == 0) return call();
    std::optional<decltype(call())> result;
    std::thread([&] {
      TakeAway(SYS_openat2, GetParam());
      result.emplace(call());
    }).join();
    return *std::move(result);
  }

  absl::StatusCode Check(const std::string& path) {
    const auto roots = LocalRoots::Open({base_ + "/allowed"});
    EXPECT_TRUE(roots.ok()) << roots.status();
    return Run([&] { return roots->Resolve(path); }).status().code();
  }

  absl::StatusOr<UniqueFd> Open(const std::string& name, int flags, Symlinks symlinks,
                                unsigned mode = 0) {
    const auto root = OpenFolder(base_ + "/allowed");
    EXPECT_TRUE(root.ok()) << root.status();
    return Run([&] { return OpenBeneath(root->get(), name, flags, symlinks, mode); });
  }
  absl::StatusCode CodeOf(const std::string& name, int flags, Symlinks symlinks) {
    return Open(name, flags, symlinks).status().code();
  }
  static std::string Text(const UniqueFd& fd) {
    char bytes[16];
    const ssize_t size = read(fd.get(), bytes, sizeof bytes);
    return size < 0 ? "cannot be read" : std::string(bytes, static_cast<size_t>(size));
  }

  std::string base_;
};

TEST_P(ConfinedTest, AllowsWhatLiesBelow) {
  EXPECT_EQ(Check(base_ + "/allowed/model"), absl::StatusCode::kOk);
  EXPECT_EQ(Check(base_ + "/allowed/model/"), absl::StatusCode::kOk);
  EXPECT_EQ(Check(base_ + "/allowed"), absl::StatusCode::kOk);
  EXPECT_EQ(Check(base_ + "/allowed/model/weights"), absl::StatusCode::kOk);  // link inside
  EXPECT_EQ(Check(base_ + "/allowed//model/config.json"), absl::StatusCode::kOk);
}

TEST_P(ConfinedTest, RefusesWhatLiesOutside) {
  fs::create_symlink(base_ + "/outside", base_ + "/allowed/absolute_link");
  fs::create_symlink("../outside", base_ + "/allowed/relative_link");
  fs::create_directories(base_ + "/allowedless");
  const std::string with_nul = base_ + "/allowed/model" + std::string(1, '\0') + "/x";
  for (const std::string& path :
       {std::string(), std::string("model"), std::string("/etc/passwd"), base_,
        base_ + "/allowedless", base_ + "/allowed/../outside", base_ + "/allowed/absolute_link",
        base_ + "/allowed/relative_link", base_ + "/allowed/relative_link/secret",
        base_ + "/allowed/a\\b", with_nul, "/" + std::string(5000, 'a')}) {
    EXPECT_EQ(Check(path), absl::StatusCode::kPermissionDenied) << path;
  }
}

TEST_P(ConfinedTest, RefusesAFolderWithAnEscapingLink) {
  fs::create_symlink("../../outside/secret", base_ + "/allowed/model/tokenizer.json");
  EXPECT_EQ(Check(base_ + "/allowed/model"), absl::StatusCode::kPermissionDenied);
}

TEST_P(ConfinedTest, RefusesSpecialFiles) {
  ASSERT_EQ(mkfifo((base_ + "/allowed/cache/pipe").c_str(), 0600), 0);
  EXPECT_EQ(Check(base_ + "/allowed/cache/pipe"), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Check(base_ + "/allowed/cache"), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Check(base_ + "/allowed/cache/blob"), absl::StatusCode::kOk);
  fs::create_symlink("../cache/pipe", base_ + "/allowed/model/tokenizer.json");
  EXPECT_EQ(Check(base_ + "/allowed/model"), absl::StatusCode::kPermissionDenied);
}

TEST_P(ConfinedTest, ADanglingLinkHarmsNobody) {
  fs::create_symlink("missing", base_ + "/allowed/model/extra.json");
  EXPECT_EQ(Check(base_ + "/allowed/model"), absl::StatusCode::kOk);
}

TEST_P(ConfinedTest, RootsOfOtherMachinesAreLeftOut) {
  const LocalRoots roots = LocalRoots::OpenThoseHere({base_ + "/missing", base_ + "/allowed"});
  EXPECT_EQ(roots.paths(), std::vector<std::string>{base_ + "/allowed"});
  EXPECT_TRUE(Run([&] { return roots.Resolve(base_ + "/allowed/model"); }).ok());
}

// An ill disk is no answer to who may read what, nor to what is there.
TEST_P(ConfinedTest, AnIllDiskIsToldAsOne) {
  if (GetParam() != 0) return;
  std::thread([&] {
    const auto roots = LocalRoots::Open({base_ + "/allowed"});
    ASSERT_TRUE(roots.ok());
    TakeAway(SYS_openat2, ESTALE);
    const absl::Status status = roots->Resolve(base_ + "/allowed/model").status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  }).join();
  std::thread([&] {
    TakeAway(SYS_openat, EIO);
    const LocalRoots roots = LocalRoots::OpenThoseHere({base_ + "/allowed"});
    const absl::Status status = roots.Resolve(base_ + "/allowed/model").status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_NE(status.message().find(base_ + "/allowed"), std::string::npos) << status;
    EXPECT_TRUE(absl::IsPermissionDenied(roots.Resolve(base_ + "/outside").status()));
  }).join();
}

TEST_P(ConfinedTest, SaysWhenNothingIsThere) {
  EXPECT_EQ(Check(base_ + "/allowed/missing"), absl::StatusCode::kNotFound);
}

TEST_P(ConfinedTest, ARootMayBeReachedThroughALink) {
  fs::create_symlink(base_ + "/allowed", base_ + "/alias");
  const auto roots = LocalRoots::Open({base_ + "/alias/"});
  ASSERT_TRUE(roots.ok());
  for (const char* path : {"/alias/model", "/allowed/model"}) {
    const auto resolved = Run([&] { return roots->Resolve(base_ + path); });
    ASSERT_TRUE(resolved.ok()) << resolved.status();
    EXPECT_EQ(*resolved, base_ + "/allowed/model");
  }
  EXPECT_EQ(*Run([&] { return roots->Resolve(base_ + "/alias"); }), base_ + "/allowed");
}

TEST_P(ConfinedTest, WithoutRootsTheMessageSaysSo) {
  const auto roots = LocalRoots::Open({});
  ASSERT_TRUE(roots.ok());
  EXPECT_NE(roots->Resolve("/tmp").status().message().find("none is configured"),
            std::string::npos);
}

TEST_P(ConfinedTest, BadRootsAreRefused) {
  EXPECT_FALSE(LocalRoots::Open({"relative"}).ok());
  EXPECT_FALSE(LocalRoots::Open({base_ + "/missing"}).ok());
  EXPECT_FALSE(LocalRoots::Open({base_ + "/outside/secret"}).ok());
}

TEST_P(ConfinedTest, MagicLinksAreNotFollowed) {
  const auto proc = OpenFolder("/proc/self");
  ASSERT_TRUE(proc.ok());
  const auto root =
      Run([&] { return OpenBeneath(proc->get(), "root", O_PATH, Symlinks::kFollowBeneath); });
  EXPECT_EQ(root.status().code(), absl::StatusCode::kPermissionDenied);
}

TEST_P(ConfinedTest, SymlinksCanBeRefusedAltogether) {
  fs::create_symlink("cache", base_ + "/allowed/alias");
  EXPECT_EQ(Text(*Open("cache/blob", O_RDONLY, Symlinks::kRefuse)), "b");
  for (const char* name : {"model/weights", "alias/blob", "alias"}) {
    for (const int flags : {O_RDONLY, O_PATH}) {
      EXPECT_EQ(CodeOf(name, flags, Symlinks::kRefuse), absl::StatusCode::kPermissionDenied)
          << name << " " << flags;
    }
  }
  for (const char* name : {"/etc", "", "..", "model/../cache/blob", "a\\b"}) {
    EXPECT_EQ(CodeOf(name, O_RDONLY, Symlinks::kRefuse), absl::StatusCode::kInvalidArgument)
        << name;
  }
}

TEST_P(ConfinedTest, LinksThatStayBelowAreFollowed) {
  fs::create_symlink("cache/", base_ + "/allowed/alias");
  fs::create_symlink("../alias/../cache/./blob", base_ + "/allowed/model/chain");
  fs::create_symlink("chain", base_ + "/allowed/model/longer_chain");
  for (const char* name : {"model/weights", "alias/blob", "model/chain", "model/longer_chain"}) {
    const auto fd = Open(name, O_RDONLY, Symlinks::kFollowBeneath);
    ASSERT_TRUE(fd.ok()) << name << ": " << fd.status();
    EXPECT_EQ(Text(*fd), "b") << name;
  }
}

TEST_P(ConfinedTest, LinksThatDoNotAreRefused) {
  fs::create_symlink("../../outside/secret", base_ + "/allowed/model/above");
  fs::create_symlink("above", base_ + "/allowed/model/to_above");
  fs::create_symlink(base_ + "/allowed/cache/blob", base_ + "/allowed/model/absolute");
  fs::create_symlink("me", base_ + "/allowed/me");
  fs::create_symlink("../model/../../allowed/cache", base_ + "/allowed/model/out_and_in");
  for (const char* name :
       {"model/above", "model/to_above", "model/absolute", "me", "me/x", "model/out_and_in/blob"}) {
    EXPECT_EQ(CodeOf(name, O_RDONLY, Symlinks::kFollowBeneath), absl::StatusCode::kPermissionDenied)
        << name;
  }
}

TEST_P(ConfinedTest, NamesAreTakenAsByTheKernel) {
  for (const char* name : {"./cache//blob", "cache/./blob"}) {
    EXPECT_EQ(Text(*Open(name, O_RDONLY, Symlinks::kRefuse)), "b") << name;
  }
  for (const char* name : {".", "cache", "cache/", "cache/."}) {
    EXPECT_EQ(CodeOf(name, O_RDONLY | O_DIRECTORY, Symlinks::kRefuse), absl::StatusCode::kOk)
        << name;
  }
  for (const char* name : {"cache/blob/", "cache/blob/x", "missing", "missing/x"}) {
    EXPECT_EQ(CodeOf(name, O_RDONLY, Symlinks::kRefuse), absl::StatusCode::kNotFound) << name;
  }
  for (const int flags : {O_RDONLY | O_DIRECTORY, O_PATH | O_DIRECTORY}) {
    EXPECT_EQ(CodeOf("cache/blob", flags, Symlinks::kRefuse), absl::StatusCode::kNotFound);
  }
}

TEST_P(ConfinedTest, FilesCanBeMade) {
  const auto made = Open("cache/new", O_WRONLY | O_CREAT | O_EXCL, Symlinks::kRefuse, 0640);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(fcntl(made->get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_EQ(fs::status(base_ + "/allowed/cache/new").permissions() & fs::perms::owner_all,
            fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_FALSE(Open("cache/new", O_WRONLY | O_CREAT | O_EXCL, Symlinks::kRefuse, 0640).ok());
  fs::create_symlink("../../outside/made", base_ + "/allowed/cache/link");
  for (const Symlinks symlinks : {Symlinks::kRefuse, Symlinks::kFollowBeneath}) {
    EXPECT_EQ(Open("cache/link", O_WRONLY | O_CREAT, symlinks, 0640).status().code(),
              absl::StatusCode::kPermissionDenied);
  }
  EXPECT_FALSE(fs::exists(base_ + "/outside/made"));
}

TEST_P(ConfinedTest, TheCaseIsWhatItSays) {
  if (GetParam() == 0) return;  // whatever this machine has
  const int error = Run([] { return syscall(SYS_openat2, -1, "", nullptr, 0) < 0 ? errno : 0; });
  EXPECT_EQ(error, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Openat2, ConfinedTest, testing::Values(0, ENOSYS, EPERM),
                         [](const auto& each) {
                           if (each.param == 0) return "here";
                           return each.param == ENOSYS ? "missing" : "denied";
                         });

}  // namespace
}  // namespace quantry
