#include "worker/agent/work_dir.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <stop_token>
#include <thread>

#include "common/errors.h"
#include "gtest/gtest.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;

class WorkDirTest : public testing::Test {
 protected:
  WorkDirTest() {
    char name[] = "/tmp/quantry-work-XXXXXX";
    root_ = mkdtemp(name);
  }
  ~WorkDirTest() override { fs::remove_all(root_); }
  static void Touch(const std::string& path) {
    fs::create_directories(fs::path(path).parent_path());
    std::ofstream(path) << "x";
  }
  fs::path root_;
};

TEST_F(WorkDirTest, OneAgentAtATime) {
  std::optional<WorkDir> first(*WorkDir::Open(root_));
  EXPECT_TRUE(HasReason(WorkDir::Open(root_).status(), Reason::kDataDirLocked));
  first.reset();
  EXPECT_TRUE(WorkDir::Open(root_).ok());
}

TEST_F(WorkDirTest, LeftoversButYoungCheckpointsGo) {
  AttemptDir young, old, empty;
  {
    const auto dir = WorkDir::Open(root_);
    ASSERT_TRUE(dir.ok());
    young = *dir->CreateAttempt("young", 3);
    Touch(young.checkpoint() + "/block-0");
    Touch(young.checkpoint() + "/rotated/model.safetensors");
    Touch(young.model() + "/model.safetensors");
    Touch(young.output() + "/half.safetensors");
    old = *dir->CreateAttempt("old", 1);
    Touch(old.checkpoint() + "/block-0");
    empty = *dir->CreateAttempt("empty", 1);
  }
  fs::last_write_time(old.checkpoint(), fs::file_time_type::clock::now() - std::chrono::hours(48));
  const auto dir = WorkDir::Open(root_);
  ASSERT_TRUE(dir.ok());
  EXPECT_TRUE(fs::exists(young.checkpoint() + "/block-0"));
  EXPECT_FALSE(fs::exists(young.checkpoint() + "/rotated")) << "made anew by the next attempt";
  EXPECT_FALSE(fs::exists(young.model()));
  EXPECT_FALSE(fs::exists(young.output()));
  EXPECT_FALSE(fs::exists(old.root));
  EXPECT_FALSE(fs::exists(fs::path(empty.root).parent_path()));
  dir->RemoveKeptCheckpoints();
  EXPECT_FALSE(fs::exists(young.root));
}

// A slot looks for room while another one begins an attempt.
TEST_F(WorkDirTest, AnAttemptThatBeginsIsNoKeptOne) {
  const auto dir = WorkDir::Open(root_);
  ASSERT_TRUE(dir.ok());
  const std::jthread other([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) dir->RemoveKeptCheckpoints();
  });
  for (int epoch = 0; epoch < 100; ++epoch) {
    const auto attempt = dir->CreateAttempt("job", epoch);
    ASSERT_TRUE(attempt.ok()) << attempt.status();  // {job uid} is empty, and removed, between two
    for (const std::string& folder : {attempt->text(), attempt->checkpoint(), attempt->output()}) {
      ASSERT_TRUE(fs::exists(folder)) << folder;
    }
    dir->RemoveAttempt(*attempt, false);
  }
}

// An exception on a slot's thread would end the agent and all its jobs.
TEST_F(WorkDirTest, WhatCannotBeLookedAtEndsNobody) {
  const auto dir = WorkDir::Open(root_);
  ASSERT_TRUE(dir.ok());
  fs::create_directories(root_ / "jobs/uid");
  fs::create_symlink("loop", root_ / "jobs/uid/loop");
  EXPECT_NO_THROW(dir->RemoveKeptCheckpoints());
  const AttemptDir unreachable{root_ / "jobs/uid/loop"};
  const Identity self{.name = "self", .uid = getuid(), .gid = getgid(), .groups = {}};
  absl::Status status;
  EXPECT_NO_THROW(status = HandOver(unreachable, self));
  EXPECT_TRUE(HasReason(status, Reason::kStorageError)) << status;
}

TEST_F(WorkDirTest, EpochsDoNotMix) {
  const auto dir = WorkDir::Open(root_);
  ASSERT_TRUE(dir.ok());
  const AttemptDir first = *dir->CreateAttempt("job", 1);
  Touch(first.output() + "/stale");
  const AttemptDir second = *dir->CreateAttempt("job", 2);
  EXPECT_NE(first.root, second.root);
  EXPECT_FALSE(fs::exists(second.output() + "/stale"));
  // The same epoch again: an agent that restarted within the lease.
  EXPECT_FALSE(fs::exists(dir->CreateAttempt("job", 1)->output() + "/stale"));
  const AttemptDir third = *dir->CreateAttempt("job", 10);
  dir->RemoveEarlierAttempts(second);
  EXPECT_FALSE(fs::exists(first.root));
  EXPECT_TRUE(fs::exists(second.root));
  EXPECT_TRUE(fs::exists(third.root));
  dir->RemoveAttempt(third, /*keep_checkpoint=*/false);
  dir->RemoveAttempt(second, /*keep_checkpoint=*/false);
  EXPECT_FALSE(fs::exists(fs::path(second.root).parent_path()));
}

TEST_F(WorkDirTest, HostileUidsAreRefused) {
  const auto dir = WorkDir::Open(root_);
  ASSERT_TRUE(dir.ok());
  for (const char* uid : {"", "..", "../x", "a/b", "/etc"}) {
    EXPECT_EQ(dir->CreateAttempt(uid, 1).status().code(), absl::StatusCode::kInvalidArgument)
        << uid;
  }
}

TEST_F(WorkDirTest, FreeBytesIsPositive) { EXPECT_GT(*WorkDir::Open(root_)->FreeBytes(), 0); }

}  // namespace
}  // namespace quantry::agent
