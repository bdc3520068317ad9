#include "server/scheduling/sweeper.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <latch>
#include <thread>

#include "server/jobs/sqlite_job_store.h"

namespace quantry::server {
namespace {

class SweeperTest : public testing::Test {
 protected:
  SweeperTest() {
    std::string path = std::filesystem::temp_directory_path() / "quantry_sweep_XXXXXX";
    dir_ = mkdtemp(path.data());
    store_ = OpenSqliteJobStore({dir_, {}}).value();
  }
  ~SweeperTest() override {
    store_ = nullptr;
    std::filesystem::remove_all(dir_);
  }

  std::string dir_;
  std::unique_ptr<JobStore> store_;
  FakeClock clock_;
};

TEST_F(SweeperTest, OneIterationUsesTheClock) {
  std::vector<bool> pushed;
  Sweeper sweeper(store_.get(), &clock_, {.on_sweep = [&](const auto& report) {
                    pushed.push_back(report.value().pushed_leases);
                  }});
  EXPECT_TRUE(sweeper.RunOnce().ok());
  clock_.Advance(std::chrono::seconds(5));
  EXPECT_TRUE(sweeper.RunOnce().ok());
  clock_.Advance(std::chrono::seconds(60));
  EXPECT_TRUE(sweeper.RunOnce().ok());
  EXPECT_EQ(pushed, (std::vector<bool>{false, false, true}));
}

TEST_F(SweeperTest, TheLoopIteratesUntilStopped) {
  std::latch three(3);
  std::atomic<int> sweeps{0};
  Sweeper sweeper(store_.get(), &clock_,
                  {.interval = std::chrono::milliseconds(1), .on_sweep = [&](const auto& report) {
                     EXPECT_TRUE(report.ok());
                     if (++sweeps <= 3) three.count_down();
                   }});
  std::jthread loop([&](std::stop_token stop) { sweeper.Run(stop); });
  three.wait();
}

TEST_F(SweeperTest, StopDoesNotWaitForTheInterval) {
  std::latch first(1);
  Sweeper sweeper(
      store_.get(), &clock_,
      {.interval = std::chrono::hours(1), .on_sweep = [&](const auto&) { first.count_down(); }});
  std::jthread loop([&](std::stop_token stop) { sweeper.Run(stop); });
  first.wait();
}

}  // namespace
}  // namespace quantry::server
