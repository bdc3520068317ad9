#include "server/artifacts/garbage_collector.h"

#include <unistd.h>

#include <array>
#include <barrier>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>
#include <vector>

#include "common/digest.h"
#include "common/errors.h"
#include "common/ids.h"
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
    return WriteOld(root_ + "/blobs/acme/" + Sha256Hex(text), text);
  }
  // What an attempt of a job left, two days old.
  std::string DumpOutput(const std::string& job_uid) {
    return WriteOld(root_ + "/artifacts/acme/" + job_uid + "/1/files/model", "12345");
  }
  static std::string WriteOld(const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(path).parent_path());
    std::ofstream(path) << text;
    fs::last_write_time(path, fs::file_time_type::clock::now() - hours(48));
    return path;
  }
  // A job that runs, with its upload and its output. Both paths.
  std::vector<std::string> RunJob(const std::string& text) {
    SubmitRequest request;
    request.key = {"acme", "job-one"};
    request.uid = NewUuid4();
    request.spec.mutable_method()->mutable_rtn();
    request.spec.mutable_model()->mutable_blobs()->add_files()->set_sha256(Sha256Hex(text));
    v1::WorkerInfo worker;
    worker.set_worker_id("w1");
    worker.add_methods("rtn");
    EXPECT_TRUE(jobs_->Submit(request, clock_.Now()).ok());
    EXPECT_TRUE(jobs_->RegisterWorker(worker, "s1", clock_.Now()).ok());
    EXPECT_TRUE((*jobs_->Acquire({"s1", NewUuid4()}, clock_.Now())).has_value());
    return {Dump(text), DumpOutput(request.uid)};
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

// One asked for by hand, or two whose turns came at once.
TEST_F(GarbageCollectorTest, TwoAtATimeTakeNothingThatIsNeeded) {
  constexpr int kRounds = 20;
  constexpr int kOfEach = 15;
  GarbageCollector one(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_, "store");
  GarbageCollector two(jobs_.get(), artifacts_.get(), blobs_.get(), &clock_, "store");
  const std::vector<std::string> needed = RunJob("needed");
  for (int round = 0; round < kRounds; ++round) {
    std::vector<std::string> garbage;
    for (int i = 0; i < kOfEach; ++i) {
      garbage.push_back(Dump(std::to_string(i) + " of round " + std::to_string(round)));
      garbage.push_back(DumpOutput(NewUuid4()));
    }
    std::barrier both(2);
    std::array<GarbageReport, 2> reports;
    const auto collect = [&](GarbageCollector& collector, GarbageReport* report) {
      both.arrive_and_wait();
      auto found = collector.Collect({});
      EXPECT_TRUE(found.ok()) << found.status();
      if (found.ok()) *report = *std::move(found);
    };
    {
      const std::jthread other([&] { collect(two, &reports[1]); });
      collect(one, &reports[0]);
    }
    for (const GarbageReport& report : reports) {
      EXPECT_EQ(report.failures, 0) << report.first_failure;
    }
    EXPECT_GE(reports[0].attempts + reports[1].attempts, kOfEach);
    for (const std::string& path : garbage) EXPECT_FALSE(fs::exists(path)) << path;
    for (const std::string& path : needed) ASSERT_TRUE(fs::exists(path)) << path;
  }
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
