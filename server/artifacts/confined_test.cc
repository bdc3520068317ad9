#include "server/artifacts/confined.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace quantry::server {
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
    return roots->Check(path).code();
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

TEST_F(ConfinedTest, SaysWhenNothingIsThere) {
  EXPECT_EQ(Check(base_ + "/allowed/missing"), absl::StatusCode::kNotFound);
}

TEST_F(ConfinedTest, ARootMayBeReachedThroughALink) {
  fs::create_symlink(base_ + "/allowed", base_ + "/alias");
  const auto roots = LocalRoots::Open({base_ + "/alias/"});
  ASSERT_TRUE(roots.ok());
  EXPECT_TRUE(roots->Check(base_ + "/alias/model").ok());
  EXPECT_TRUE(roots->Check(base_ + "/allowed/model").ok());
}

TEST_F(ConfinedTest, WithoutRootsTheMessageSaysWhatToDo) {
  const auto roots = LocalRoots::Open({});
  ASSERT_TRUE(roots.ok());
  EXPECT_NE(roots->Check("/tmp").message().find("--local-roots"), std::string::npos);
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
}  // namespace quantry::server
