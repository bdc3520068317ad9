#include "common/confined.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace quantry {
namespace {

namespace fs = std::filesystem;

class ConfinedTest : public testing::Test {
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

  absl::StatusCode Check(const std::string& path) {
    const auto roots = LocalRoots::Open({base_ + "/allowed"});
    EXPECT_TRUE(roots.ok()) << roots.status();
    return roots->Resolve(path).status().code();
  }

  std::string base_;
};

TEST_F(ConfinedTest, AllowsWhatLiesBelow) {
  EXPECT_EQ(Check(base_ + "/allowed/model"), absl::StatusCode::kOk);
  EXPECT_EQ(Check(base_ + "/allowed/model/"), absl::StatusCode::kOk);
  EXPECT_EQ(Check(base_ + "/allowed"), absl::StatusCode::kOk);
  EXPECT_EQ(Check(base_ + "/allowed/model/weights"), absl::StatusCode::kOk);  // link inside
  EXPECT_EQ(Check(base_ + "/allowed//model/config.json"), absl::StatusCode::kOk);
}

TEST_F(ConfinedTest, RefusesWhatLiesOutside) {
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

TEST_F(ConfinedTest, RefusesAFolderWithAnEscapingLink) {
  fs::create_symlink("../../outside/secret", base_ + "/allowed/model/tokenizer.json");
  EXPECT_EQ(Check(base_ + "/allowed/model"), absl::StatusCode::kPermissionDenied);
}

TEST_F(ConfinedTest, RefusesSpecialFiles) {
  ASSERT_EQ(mkfifo((base_ + "/allowed/cache/pipe").c_str(), 0600), 0);
  EXPECT_EQ(Check(base_ + "/allowed/cache/pipe"), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Check(base_ + "/allowed/cache"), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Check(base_ + "/allowed/cache/blob"), absl::StatusCode::kOk);
  fs::create_symlink("../cache/pipe", base_ + "/allowed/model/tokenizer.json");
  EXPECT_EQ(Check(base_ + "/allowed/model"), absl::StatusCode::kPermissionDenied);
}

TEST_F(ConfinedTest, ADanglingLinkHarmsNobody) {
  fs::create_symlink("missing", base_ + "/allowed/model/extra.json");
  EXPECT_EQ(Check(base_ + "/allowed/model"), absl::StatusCode::kOk);
}

TEST_F(ConfinedTest, RootsOfOtherMachinesAreLeftOut) {
  const LocalRoots roots = LocalRoots::OpenThoseHere({base_ + "/missing", base_ + "/allowed"});
  EXPECT_EQ(roots.paths(), std::vector<std::string>{base_ + "/allowed"});
  EXPECT_TRUE(roots.Resolve(base_ + "/allowed/model").ok());
}

TEST_F(ConfinedTest, SaysWhenNothingIsThere) {
  EXPECT_EQ(Check(base_ + "/allowed/missing"), absl::StatusCode::kNotFound);
}

TEST_F(ConfinedTest, ARootMayBeReachedThroughALink) {
  fs::create_symlink(base_ + "/allowed", base_ + "/alias");
  const auto roots = LocalRoots::Open({base_ + "/alias/"});
  ASSERT_TRUE(roots.ok());
  for (const char* path : {"/alias/model", "/allowed/model"}) {
    const auto resolved = roots->Resolve(base_ + path);
    ASSERT_TRUE(resolved.ok()) << resolved.status();
    EXPECT_EQ(*resolved, base_ + "/allowed/model");
  }
  EXPECT_EQ(*roots->Resolve(base_ + "/alias"), base_ + "/allowed");
}

TEST_F(ConfinedTest, WithoutRootsTheMessageSaysSo) {
  const auto roots = LocalRoots::Open({});
  ASSERT_TRUE(roots.ok());
  EXPECT_NE(roots->Resolve("/tmp").status().message().find("none is configured"),
            std::string::npos);
}

TEST_F(ConfinedTest, BadRootsAreRefused) {
  EXPECT_FALSE(LocalRoots::Open({"relative"}).ok());
  EXPECT_FALSE(LocalRoots::Open({base_ + "/missing"}).ok());
  EXPECT_FALSE(LocalRoots::Open({base_ + "/outside/secret"}).ok());
}

TEST_F(ConfinedTest, MagicLinksAreNotFollowed) {
  const auto proc = OpenFolder("/proc/self");
  ASSERT_TRUE(proc.ok());
  EXPECT_EQ(OpenBeneath(proc->get(), "root", O_PATH, Symlinks::kFollowBeneath).status().code(),
            absl::StatusCode::kPermissionDenied);
}

TEST_F(ConfinedTest, SymlinksCanBeRefusedAltogether) {
  const auto root = OpenFolder(base_ + "/allowed");
  ASSERT_TRUE(root.ok());
  EXPECT_TRUE(OpenBeneath(root->get(), "cache/blob", O_RDONLY, Symlinks::kRefuse).ok());
  EXPECT_FALSE(OpenBeneath(root->get(), "model/weights", O_RDONLY, Symlinks::kRefuse).ok());
  EXPECT_EQ(OpenBeneath(root->get(), "/etc", O_RDONLY, Symlinks::kRefuse).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quantry
