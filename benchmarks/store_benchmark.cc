// What a job store does by itself, without gRPC: submits at a fixed rate
// (latency from the time a call was due), claims from a deep queue, beats, and
// how fast the disk below syncs, which bounds all of it. Goals: submit p99 at
// 200/s <= 30 ms (SQLite), <= 50 ms (PostgreSQL); claims/s at depth 1e6 >=
// 1,000 and >= 500.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "common/clock.h"
#include "common/ids.h"
#include "common/unique_fd.h"
#include "server/jobs/postgres/conninfo.h"
#include "server/jobs/postgres_job_store.h"
#include "server/jobs/sqlite_job_store.h"

namespace quantry::server {
namespace {

using SteadyClock = std::chrono::steady_clock;

struct Flags {
  std::string data_dir;
  std::string job_store = "sqlite";
  std::string password_file;
  int connections = 16;
  int depth = 100'000;
  int tenants = 1;
  int threads = 16;
  int rate = 200;
  int seconds = 10;
  int claims = 5'000;
  int workers = 20;
};

SubmitRequest MakeRequest(const std::string& tenant) {
  SubmitRequest request;
  request.uid = NewUuid4();
  request.key = {tenant, "j" + request.uid};
  request.request_id = NewUuid4();
  request.request_hash = request.uid;
  request.labels = {{"team", "bench"}};
  request.spec.mutable_model()->set_local_path("/srv/models/a-model-of-some-name");
  request.spec.mutable_method()->mutable_awq()->mutable_grid()->set_bits(4);
  return request;
}

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

double Seconds(SteadyClock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Runs call(i) for i in [0, count) on `threads` threads; returns the seconds.
double RunAll(int threads, int count, const std::function<void(int)>& call) {
  std::atomic<int> next{0};
  auto start = SteadyClock::now();
  {
    std::vector<std::jthread> pool;
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back([&] {
        for (int i = next++; i < count; i = next++) call(i);
      });
    }
  }
  return Seconds(SteadyClock::now() - start);
}

void PrintLatencies(const char* name, std::vector<double> ms, double seconds) {
  std::sort(ms.begin(), ms.end());
  auto at = [&](double q) { return ms[std::min(ms.size() - 1, size_t(q * double(ms.size())))]; };
  std::printf("%-28s %9zu calls %9.0f/s  p50 %7.2f  p99 %7.2f  max %7.2f ms\n", name, ms.size(),
              double(ms.size()) / seconds, at(0.5), at(0.99), ms.back());
  std::fflush(stdout);
}

// Latencies in ms of `count` calls, each measured from when it began.
void Measure(const char* name, int threads, int count, const std::function<void(int)>& call) {
  std::vector<double> ms(static_cast<size_t>(count));
  double seconds = RunAll(threads, count, [&](int i) {
    auto start = SteadyClock::now();
    call(i);
    ms[static_cast<size_t>(i)] = 1e3 * Seconds(SteadyClock::now() - start);
  });
  PrintLatencies(name, std::move(ms), seconds);
}

// Open loop: call i is due at i / rate, and late calls count as slow ones.
void MeasureAtRate(const char* name, const Flags& flags, int rate,
                   const std::function<void(int)>& call) {
  int count = rate * flags.seconds;
  std::vector<double> ms(static_cast<size_t>(count));
  auto start = SteadyClock::now();
  double seconds = RunAll(flags.threads, count, [&](int i) {
    auto due = start + std::chrono::microseconds(int64_t{1'000'000} * i / rate);
    std::this_thread::sleep_until(due);
    call(i);
    ms[static_cast<size_t>(i)] = 1e3 * Seconds(SteadyClock::now() - due);
  });
  PrintLatencies(name, std::move(ms), seconds);
}

// Appends of 8 KiB, each synced: what one commit alone can cost at least.
void MeasureSyncs(const std::string& folder) {
  const std::string path = folder + "/fsync.tmp";
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file.ok()) return;
  const std::string page(8192, 'x');
  Measure("fdatasync after 8 KiB", 1, 500, [&](int) {
    if (write(file.get(), page.data(), page.size()) < 0 || fdatasync(file.get()) != 0) {
      Check(absl::InternalError("cannot write to " + path));
    }
  });
  unlink(path.c_str());
}

void Run(const Flags& flags, JobStore& store) {
  SystemClock clock;
  auto tenant_of = [&](int i) { return "bench-" + std::to_string(i % flags.tenants); };
  auto submit = [&](int i) {
    Check(store.Submit(MakeRequest(tenant_of(i)), clock.Now()).status());
  };
  Measure("submit, closed loop (fill)", 64, flags.depth, submit);
  // A server's first second; it folds PostgreSQL's counters.
  Measure("first sweep", 1, 1, [&](int) { Check(store.Sweep(clock.Now()).status()); });
  MeasureAtRate("submit at a fixed rate", flags, flags.rate, submit);
  auto session_of = [&](int i) { return "session-" + std::to_string(i % flags.workers); };
  for (int i = 0; i < flags.workers; ++i) {
    v1::WorkerInfo worker;
    worker.set_worker_id("bench-" + std::to_string(i));
    worker.add_methods("awq");
    Check(store.RegisterWorker(worker, session_of(i), clock.Now()).status());
  }
  const int claims = std::min(flags.claims, flags.depth);
  std::vector<Grant> grants(static_cast<size_t>(claims));
  auto claim = [&](int i) {
    auto grant = store.Acquire({session_of(i), NewUuid4()}, clock.Now());
    Check(grant.status());
    if (*grant) grants[static_cast<size_t>(i)] = **std::move(grant);
  };
  Measure("claim", flags.threads, claims, claim);
  Measure("heartbeat", flags.threads, claims, [&](int i) {
    const Job& job = grants[static_cast<size_t>(i)].job;
    Beat beat{job.key, job.epoch, {}, {}};
    beat.progress.set_steps_done(i);
    Check(store.Heartbeat({session_of(i), {beat}}, clock.Now()).status());
  });
  ListQuery page;
  page.tenant = tenant_of(0);
  auto list = [&](int) { Check(store.List(page).status()); };
  auto get = [&](int i) {
    const Grant& grant = grants[static_cast<size_t>(i) % grants.size()];
    Check(store.Get(grant.job.key).status());
  };
  Measure("list, page of 50", flags.threads, 500, list);
  MeasureAtRate("list, 50 a second", flags, 50, list);
  Measure("get", flags.threads, 5'000, get);
  MeasureAtRate("get, 200 a second", flags, 200, get);
  Measure("stats", 1, 200, [&](int) { Check(store.Stats(clock.Now()).status()); });
  Measure("sweep", 1, 20, [&](int) { Check(store.Sweep(clock.Now()).status()); });
}

absl::StatusOr<std::unique_ptr<JobStore>> Open(const Flags& flags) {
  if (flags.job_store == "sqlite") return OpenSqliteJobStore({flags.data_dir, {}});
  auto conninfo = postgres::MakeConninfo(flags.job_store, flags.password_file);
  if (!conninfo.ok()) return conninfo.status();
  return OpenPostgresJobStore(
      {.conninfo = *conninfo, .policy = {}, .connections = flags.connections});
}

}  // namespace
}  // namespace quantry::server

int main(int argc, char** argv) {
  quantry::server::Flags flags;
  CLI::App app("Measures a job store: SQLite in an empty folder, or an empty PostgreSQL database.");
  app.add_option("--data-dir", flags.data_dir,
                 "folder on the store's disk: of the SQLite database, and where syncs are measured")
      ->required();
  app.add_option("--job-store", flags.job_store, "sqlite or postgresql://user@host:port/database")
      ->capture_default_str();
  app.add_option("--job-store-password-file", flags.password_file, "as quantryd's");
  app.add_option("--job-store-connections", flags.connections, "as quantryd's")
      ->capture_default_str();
  app.add_option("--depth", flags.depth, "jobs in the queue")->capture_default_str();
  app.add_option("--tenants", flags.tenants, "the queued jobs are of so many tenants")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "callers at once")->capture_default_str();
  app.add_option("--rate", flags.rate, "submits a second")->capture_default_str();
  app.add_option("--seconds", flags.seconds, "of submits at that rate")->capture_default_str();
  app.add_option("--claims", flags.claims, "claims and heartbeats")->capture_default_str();
  app.add_option("--workers", flags.workers, "the claims are of so many workers")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::filesystem::create_directories(flags.data_dir);
  quantry::server::MeasureSyncs(flags.data_dir);
  auto store = quantry::server::Open(flags);
  if (!store.ok()) {
    std::fprintf(stderr, "%s\n", store.status().ToString().c_str());
    return 1;
  }
  quantry::server::Run(flags, **store);
  return 0;
}
