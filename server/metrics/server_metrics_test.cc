#include "server/metrics/server_metrics.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "gtest/gtest.h"
#include "server/jobs/job_store.h"

namespace quantry::server {
namespace {

TEST(ServerMetrics, SeriesAreExportedFromZero) {
  ServerMetrics metrics({"/quantry.v1.AdminService/ListWorkers"}, {"rtn", "awq"});
  metrics.SetEngineVersion("1");
  const std::string text = metrics.Render();
  for (const char* series :
       {"grpc_server_call_started_total{grpc_method=\"/quantry.v1.AdminService/ListWorkers\"} 0",
        "quantry_jobs{state=\"QUEUED\"} 0",
        "quantry_jobs{state=\"CANCELLED\"} 0",
        "quantry_queue_depth 0",
        "quantry_queue_oldest_timestamp_seconds 0",
        "quantry_jobs_submitted_total 0",
        "quantry_jobs_finished_total{method=\"awq\",outcome=\"failed\"} 0",
        "quantry_job_queue_seconds_count 0",
        "quantry_job_run_seconds_count{method=\"rtn\"} 0",
        "quantry_job_attempts_total{outcome=\"lost\"} 0",
        "quantry_lease_expired_total 0",
        "quantry_attempt_engine_signals_total{signal=\"SIGSEGV\"} 0",
        "quantry_stale_writes_rejected_total{op=\"complete\"} 0",
        "quantry_sweeper_last_run_timestamp_seconds 0",
        "quantry_watch_streams 0",
        "quantry_watch_events_sent_total{kind=\"event\"} 0",
        "quantry_watch_events_conflated_total 0",
        "quantry_store_op_seconds_count{op=\"submit\"} 0",
        "quantry_store_errors_total{code=\"UNAVAILABLE\",op=\"acquire\"} 0",
        "quantry_artifact_bytes_total{direction=\"upload\"} 0"}) {
    EXPECT_NE(text.find(series), std::string::npos) << series;
  }
  EXPECT_NE(text.find("quantry_build_info{engine=\"1\""), std::string::npos);
}

TEST(ServerMetrics, QueueGaugesFollowTheStore) {
  ServerMetrics metrics({}, {});
  StoreStats stats;
  stats.jobs = {{JobState::kQueued, 3}, {JobState::kRunning, 1}};
  stats.depth = 2;
  stats.held = 1;
  const Time now = FromUnixMicros(9'000'000);  // of a store whose clock is another
  stats.oldest_queued = now - std::chrono::seconds(5);
  stats.live_workers = 4;
  metrics.SetQueue(stats, now);
  EXPECT_EQ(metrics.jobs.With({"QUEUED"}).Value(), 3);
  EXPECT_EQ(metrics.queue_depth.Value(), 2);
  EXPECT_EQ(metrics.queue_held.Value(), 1);
  EXPECT_NEAR(metrics.queue_oldest_timestamp.Value(), WallSeconds() - 5, 2);
  EXPECT_EQ(metrics.workers_live.Value(), 4);
  EXPECT_EQ(metrics.queue_paused.Value(), 0);
  stats.pause = QueuePause{"tea", Time()};
  stats.oldest_queued.reset();
  metrics.SetQueue(stats, now);
  EXPECT_EQ(metrics.queue_oldest_timestamp.Value(), 0);
  EXPECT_EQ(metrics.queue_paused.Value(), 1);
}

TEST(ServerMetrics, NothingIsToldOfAQueueThatIsNotKnown) {
  ServerMetrics metrics({}, {});
  StoreStats stats;
  stats.depth = 2;
  metrics.SetQueue(stats, Time());
  metrics.ForgetQueue();
  const std::string without = metrics.Render();
  for (const char* name : {"quantry_jobs{", "quantry_queue_", "quantry_workers_live"}) {
    EXPECT_EQ(without.find(name), std::string::npos) << name;
  }
  EXPECT_NE(without.find("quantry_jobs_submitted_total 0"), std::string::npos);
  metrics.SetQueue(stats, Time());
  EXPECT_NE(metrics.Render().find("quantry_queue_depth 2"), std::string::npos);
}

TEST(ServerMetrics, PromtoolFindsNothing) {
  if (std::system("command -v promtool > /dev/null") != 0) GTEST_SKIP() << "no promtool";
  ServerMetrics metrics({"/x/Y"}, {"rtn"});
  metrics.call_duration.With({"/x/Y", "OK"}).Observe(0.1);
  metrics.SetEngineVersion("1");
  const std::string path = testing::TempDir() + "metrics-" + std::to_string(getpid());
  std::ofstream(path) << metrics.Render();
  EXPECT_EQ(std::system(("promtool check metrics < " + path).c_str()), 0);
  unlink(path.c_str());
}

}  // namespace
}  // namespace quantry::server
