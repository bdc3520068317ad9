#include "worker/agent/worker_metrics.h"

#include <chrono>
#include <csignal>
#include <memory>
#include <set>
#include <sstream>
#include <string>

#include "gtest/gtest.h"
#include "worker/agent/utf8.h"

namespace quantry::agent {
namespace {

class WorkerMetricsTest : public testing::Test {
 protected:
  static v1::Lease LeaseOf(const std::string& tenant) {
    v1::Lease lease;
    lease.set_job("tenants/" + tenant + "/quantizationJobs/nightly");
    lease.set_epoch(1);
    lease.mutable_ttl()->set_seconds(10);
    lease.mutable_spec()->mutable_method()->mutable_rtn();
    return lease;
  }
  std::shared_ptr<const JobSession> Start(const std::string& tenant) {
    const v1::Lease lease = LeaseOf(tenant);
    auto session = std::make_shared<JobSession>(lease, std::chrono::steady_clock::now());
    metrics_.JobStarted(lease, session);
    return session;
  }
  // Lines of a scrape about jobs; the test fails when a series is there twice.
  std::set<std::string> Scrape() const {
    std::istringstream text(metrics_.Text());
    std::set<std::string> lines, series;
    for (std::string line; std::getline(text, line);) {
      if (!line.starts_with("quantry_job_")) continue;
      EXPECT_TRUE(series.insert(line.substr(0, line.rfind(' '))).second) << line;
      lines.insert(line);
    }
    return lines;
  }

  const std::unique_ptr<GpuInventory> gpus_ = GpuInventory::Open();
  WorkerMetrics metrics_{2, "synthetic", *gpus_};
};

constexpr char kRatioOfA[] = "quantry_job_progress_ratio{job_id=\"nightly\",tenant=\"a\"} 0";
constexpr char kRatioOfB[] = "quantry_job_progress_ratio{job_id=\"nightly\",tenant=\"b\"} 0";

TEST_F(WorkerMetricsTest, JobsOfTwoTenantsMayHaveOneId) {
  const auto a = Start("a");
  const auto b = Start("b");
  const auto lines = Scrape();
  EXPECT_TRUE(lines.contains(kRatioOfA));
  EXPECT_TRUE(lines.contains(kRatioOfB));
}

TEST_F(WorkerMetricsTest, ANewLeaseHidesTheEndedOneOfItsOwnTenantAlone) {
  const auto ended = Start("a");
  metrics_.JobEnded(*ended);
  const auto other = Start("b");
  EXPECT_TRUE(Scrape().contains(kRatioOfA));
  const auto again = Start("a");
  EXPECT_TRUE(Scrape().contains(kRatioOfA));
  EXPECT_TRUE(Scrape().contains(kRatioOfA)) << "the ended one would be gone by now";
}

// The alert of a job that stands still looks at them.
TEST_F(WorkerMetricsTest, BytesAJobMovesAreSeries) {
  const v1::Lease lease = LeaseOf("a");
  const auto session = std::make_shared<JobSession>(lease, std::chrono::steady_clock::now());
  metrics_.JobStarted(lease, session);
  const std::string of_a = "quantry_job_moved_bytes{job_id=\"nightly\",tenant=\"a\",moved=";
  for (const char* moved : {"fetched", "restored", "loaded", "uploaded"}) {
    EXPECT_EQ(metrics_.Text().find(of_a + "\"" + moved + "\"}"), std::string::npos);
    session->SetMetric(std::string(moved) + "_bytes", 4096);
    EXPECT_TRUE(Scrape().contains(of_a + "\"" + moved + "\"} 4096"));
  }
}

// Prometheus takes nothing of a scrape that is not UTF-8.
TEST_F(WorkerMetricsTest, ALongModelNameIsCutBetweenCharacters) {
  v1::Lease lease = LeaseOf("a");
  std::string name;
  while (name.size() < 100) name += "\u6a21";  // 3 bytes each
  lease.mutable_spec()->mutable_model()->set_local_path("/models/" + name);
  const auto session = std::make_shared<JobSession>(lease, std::chrono::steady_clock::now());
  metrics_.JobStarted(lease, session);
  const std::string text = metrics_.Text();
  EXPECT_EQ(ToValidUtf8(text), text);
  EXPECT_NE(text.find("model=\"" + name.substr(0, 63) + "\""), std::string::npos) << text;
}

// A series that begins at 1 has not increased: nobody would hear of the first.
TEST_F(WorkerMetricsTest, EveryWayToCrashIsCountedFromZero) {
  const std::string text = metrics_.Text();
  for (const char* signal :
       {"none", "SIGTERM", "SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"}) {
    const std::string line =
        "quantry_worker_engine_exits_total{signal=\"" + std::string(signal) + "\"} 0";
    EXPECT_NE(text.find(line), std::string::npos) << line;
  }
  metrics_.EngineExited(SIGBUS);
  EXPECT_NE(metrics_.Text().find("quantry_worker_engine_exits_total{signal=\"SIGBUS\"} 1"),
            std::string::npos);
}

}  // namespace
}  // namespace quantry::agent
