#include "server/artifacts/garbage_collector.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "common/digest.h"
#include "common/errors.h"
#include "gtest/gtest.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/artifacts/local_blob_store.h"
#include "server/jobs/sqlite_job_store.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;
using std::chrono::hours;

// Two servers that share their stores; the clock begins now.
class GarbageCollectorTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(root_);
    fs::create_directories(root_ + "/data");
    jobs_ = *OpenSqliteJobStore({root_ + "/data", {}});
    artifacts_ = *OpenLocalArtifactStore("file://" + root_ + "/artifacts");
    blobs_ = *OpenLocalBlobStore(root_ + "/blobs");
    clock_.Advance(SystemClock().Now() - clock_.Now());
    Dump("1");
  }
  void TearDown() override {
    jobs_ = nullptr;
    fs::remove_all(root_);
  }

  // An upload that no job names, two days old.
  std::string Dump(const std::string& text) {
    const std::string path = root_ + "/blobs/acme/" + Sha256Hex(text);
    fs::create_directories(root_ + "/blobs/acme");
    std::ofstream(path) << text;
    fs::last_write_time(path, fs::file_time_type::clock::now() - hours(48));
    return path;
  }
  // -1: not due.
  int Blobs(GarbageCollector& collector) {
    const auto report = collector.CollectIfDue(hours(24));
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() && report->has_value() ? (*report)->blobs : -1;
  }

  const std::string root_ = testing::TempDir() + "collector-" + std::to_string(getpid());
  FakeClock clock_;
  std::unique_ptr<JobStore> jobs_;
  std::unique_ptr<ArtifactStore> artifacts_;
  std::unique_ptr<BlobStore> blobs_;
};

TEST_F(GarbageCollectorTest, OneServerCollectsEachInterval) {
  GarbageCollector one(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_);
  GarbageCollector two(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_);
  EXPECT_EQ(Blobs(one), 1);
  Dump("2");
  EXPECT_EQ(Blobs(one), -1);
  EXPECT_EQ(Blobs(two), -1);
  clock_.Advance(hours(23));
  EXPECT_EQ(Blobs(two), -1);
  clock_.Advance(hours(2));
  EXPECT_EQ(Blobs(two), 1);
}

TEST_F(GarbageCollectorTest, AFailureIsDueAgain) {
  GarbageCollector collector(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_);
  fs::rename(root_ + "/blobs", root_ + "/kept");
  fs::create_symlink("blobs", root_ + "/blobs");  // leads nowhere but to itself
  EXPECT_FALSE(collector.CollectIfDue(hours(24)).ok());
  fs::remove(root_ + "/blobs");
  fs::rename(root_ + "/kept", root_ + "/blobs");
  EXPECT_EQ(Blobs(collector), 1);
}

// A job store knows none of another's jobs: all of their files look like garbage to it.
TEST_F(GarbageCollectorTest, LeavesTheRootsOfAnotherJobStoreAlone) {
  GarbageCollector owner(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_, "one");
  GarbageCollector stranger(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_, "two");
  ASSERT_TRUE(owner.Claim().ok());
  for (const bool dry_run : {true, false}) {
    const auto refused = stranger.Collect({.dry_run = dry_run});
    EXPECT_TRUE(HasReason(refused.status(), Reason::kInvalidConfig)) << refused.status();
  }
  EXPECT_FALSE(stranger.Claim().ok());
  EXPECT_FALSE(stranger.CollectIfDue(hours(24)).ok());
  EXPECT_TRUE(fs::exists(root_ + "/blobs/acme/" + Sha256Hex("1")));
  EXPECT_FALSE(fs::exists(root_ + "/artifacts/quantry-garbage")) << "the stranger has no turn";
  EXPECT_EQ(Blobs(owner), 1);
}

TEST_F(GarbageCollectorTest, ARootThatIsGivenUpIsTheNextOnes) {
  GarbageCollector owner(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_, "one");
  GarbageCollector next(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_, "two");
  ASSERT_TRUE(owner.Claim().ok());
  fs::remove(root_ + "/artifacts/quantry-store");
  EXPECT_FALSE(next.Collect({}).ok()) << "the uploads are the owner's still";
  fs::remove(root_ + "/blobs/quantry-store");
  EXPECT_EQ(Blobs(next), 1);
}

TEST_F(GarbageCollectorTest, ADryRunClaimsNothing) {
  GarbageCollector collector(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_, "one");
  ASSERT_TRUE(collector.Collect({.dry_run = true}).ok());
  EXPECT_FALSE(fs::exists(root_ + "/artifacts/quantry-store"));
  EXPECT_FALSE(fs::exists(root_ + "/blobs/quantry-store"));
}

TEST_F(GarbageCollectorTest, AStoppedOneLeavesTheRest) {
  GarbageCollector collector(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_);
  std::stop_source stop;
  stop.request_stop();
  EXPECT_TRUE(absl::IsCancelled(collector.Collect({}, stop.get_token()).status()));
  EXPECT_TRUE(fs::exists(root_ + "/blobs/acme/" + Sha256Hex("1")));
}

TEST_F(GarbageCollectorTest, RunsByItselfUntilStopped) {
  GarbageCollector collector(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_);
  std::promise<int> collected;
  std::jthread loop([&](const std::stop_token& stop) {
    collector.Run(
        std::chrono::milliseconds(20),
        [&, told = false](const auto& report) mutable {
          if (!told) collected.set_value(report.ok() ? report->blobs : -1);
          told = true;
        },
        stop);
  });
  EXPECT_EQ(collected.get_future().get(), 1);
}

}  // namespace
}  // namespace quantry::server
