// What the job store does by itself, without gRPC: submits at a fixed rate
// (latency from the time a call was due), claims from a deep queue, beats.
// Goals (design.md section 9): submit p99 <= 30 ms at 200/s, >= 1,000 claims/s
// at depth 1e6.
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
#include "server/jobs/sqlite_job_store.h"

namespace quantry::server {
namespace {

using SteadyClock = std::chrono::steady_clock;

struct Flags {
  std::string data_dir;
  int depth = 100'000;
  int threads = 16;
  int rate = 200;
  int seconds = 10;
  int claims = 5'000;
};

SubmitRequest MakeRequest() {
  SubmitRequest request;
  request.uid = NewUuid4();
  request.key = {"bench", "j" + request.uid};
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
void MeasureAtRate(const Flags& flags, const std::function<void(int)>& call) {
  int count = flags.rate * flags.seconds;
  std::vector<double> ms(static_cast<size_t>(count));
  auto start = SteadyClock::now();
  double seconds = RunAll(flags.threads, count, [&](int i) {
    auto due = start + std::chrono::microseconds(int64_t{1'000'000} * i / flags.rate);
    std::this_thread::sleep_until(due);
    call(i);
    ms[static_cast<size_t>(i)] = 1e3 * Seconds(SteadyClock::now() - due);
  });
  PrintLatencies("submit at a fixed rate", std::move(ms), seconds);
}

void Run(const Flags& flags, JobStore& store) {
  SystemClock clock;
  auto submit = [&](int) { Check(store.Submit(MakeRequest(), clock.Now()).status()); };
  Measure("submit, closed loop (fill)", 64, flags.depth, submit);
  MeasureAtRate(flags, submit);
  v1::WorkerInfo worker;
  worker.set_worker_id("bench");
  worker.add_methods("awq");
  Check(store.RegisterWorker(worker, "session", clock.Now()));
  std::vector<Grant> grants(static_cast<size_t>(flags.claims));
  auto claim = [&](int i) {
    auto grant = store.Acquire({"session", NewUuid4()}, clock.Now());
    Check(grant.status());
    if (*grant) grants[static_cast<size_t>(i)] = **std::move(grant);
  };
  Measure("claim", flags.threads, std::min(flags.claims, flags.depth), claim);
  Measure("heartbeat", flags.threads, std::min(flags.claims, flags.depth), [&](int i) {
    const Job& job = grants[static_cast<size_t>(i)].job;
    Beat beat{job.key, job.epoch, {}, {}};
    beat.progress.set_steps_done(i);
    Check(store.Heartbeat({"session", {beat}}, clock.Now()).status());
  });
  ListQuery page;
  page.tenant = "bench";
  Measure("list, page of 50", flags.threads, 500, [&](int) { Check(store.List(page).status()); });
  Measure("get", flags.threads, 5'000, [&](int i) {
    const Grant& grant = grants[static_cast<size_t>(i) % grants.size()];
    Check(store.Get(grant.job.key).status());
  });
  Measure("stats", 1, 200, [&](int) { Check(store.Stats(clock.Now()).status()); });
  Measure("sweep", 1, 20, [&](int) { Check(store.Sweep(clock.Now()).status()); });
}

}  // namespace
}  // namespace quantry::server

int main(int argc, char** argv) {
  quantry::server::Flags flags;
  CLI::App app("Measures the SQLite job store in an empty folder.");
  app.add_option("--data-dir", flags.data_dir, "folder; created, kept")->required();
  app.add_option("--depth", flags.depth, "jobs in the queue")->capture_default_str();
  app.add_option("--threads", flags.threads, "callers at once")->capture_default_str();
  app.add_option("--rate", flags.rate, "submits a second")->capture_default_str();
  app.add_option("--seconds", flags.seconds, "of submits at that rate")->capture_default_str();
  app.add_option("--claims", flags.claims, "claims and heartbeats")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  auto store = quantry::server::OpenSqliteJobStore({flags.data_dir, {}});
  if (!store.ok()) {
    std::fprintf(stderr, "%s\n", store.status().ToString().c_str());
    return 1;
  }
  quantry::server::Run(flags, **store);
  return 0;
}
