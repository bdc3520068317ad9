// Many watches of a running quantryd; watch_load.py starts it beside a server.
//
//   quantry_watch_load --server HOST:PORT --job NAME... [--streams 10000]
//
// Opens the streams, spread over the jobs, a hundred a connection. A line of
// JSON when all have their snapshot; then it waits for a line on stdin, cancels
// the jobs one after the other and says when the streams had their job's
// CANCELLED, from just before the first cancel.
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <iostream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "quantry/v1/quantization_service.grpc.pb.h"

namespace quantry {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;
using Stub = v1::QuantizationService::Stub;

constexpr int kStreamsAConnection = 100;  // the server's limit

struct Options {
  std::string server = "127.0.0.1:7070";
  std::vector<std::string> jobs;
  int streams = 10'000;
  double timeout_s = 300;
};

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// What this process has used of the CPUs.
double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// What all streams have seen. Thread-safe.
class Seen {
 public:
  void Attached() {
    const std::lock_guard lock(mutex_);
    ++attached_;
    changed_.notify_all();
  }
  void Cancelled() {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(Clock::now());
  }
  void Ended(const grpc::Status& status) {
    const std::lock_guard lock(mutex_);
    ++ended_;
    if (!status.ok()) error_ = status.error_message();
    changed_.notify_all();
  }

  // False: a stream broke, or it took too long. `what` counts up to `wanted`.
  bool Await(int Seen::*what, int wanted, double timeout_s) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::duration<double>(timeout_s), [&] {
      return this->*what >= wanted || !error_.empty();
    }) && error_.empty();
  }
  bool AwaitAttached(int wanted, double s) { return Await(&Seen::attached_, wanted, s); }
  bool AwaitEnded(int wanted, double s) { return Await(&Seen::ended_, wanted, s); }

  // Seconds from `start`, sorted.
  std::vector<double> CancelledAfter(Clock::time_point start) {
    const std::lock_guard lock(mutex_);
    std::vector<double> after;
    for (const Clock::time_point at : cancelled_) after.push_back(Seconds(at - start));
    std::sort(after.begin(), after.end());
    return after;
  }
  std::string error() {
    const std::lock_guard lock(mutex_);
    return error_.empty() ? "timed out" : error_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int attached_ = 0;
  int ended_ = 0;
  std::vector<Clock::time_point> cancelled_;
  std::string error_;
};

class Stream : public grpc::ClientReadReactor<v1::WatchQuantizationJobResponse> {
 public:
  Stream(Stub& stub, const std::string& job, Seen& seen) : seen_(seen) {
    request_.set_name(job);
    stub.async()->WatchQuantizationJob(&context_, &request_, this);
    StartRead(&message_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (message_.has_snapshot()) seen_.Attached();
    if (message_.event().state_changed().to() == v1::JOB_STATE_CANCELLED) seen_.Cancelled();
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override { seen_.Ended(status); }

 private:
  Seen& seen_;
  grpc::ClientContext context_;
  v1::WatchQuantizationJobRequest request_;
  v1::WatchQuantizationJobResponse message_;
};

std::vector<std::unique_ptr<Stub>> Connect(const Options& options) {
  std::vector<std::unique_ptr<Stub>> stubs;
  for (int first = 0; first < options.streams; first += kStreamsAConnection) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stubs.push_back(v1::QuantizationService::NewStub(
        grpc::CreateCustomChannel(options.server, grpc::InsecureChannelCredentials(), arguments)));
  }
  return stubs;
}

grpc::Status Cancel(Stub& stub, const std::string& job) {
  grpc::ClientContext context;
  v1::CancelQuantizationJobRequest request;
  request.set_name(job);
  v1::QuantizationJob cancelled;
  return stub.CancelQuantizationJob(&context, request, &cancelled);
}

int Fail(const std::string& what) {
  std::fprintf(stderr, "quantry_watch_load: %s\n", what.c_str());
  std::fflush(stderr);
  std::_Exit(1);  // streams may still be open
}

int Run(const Options& options) {
  const auto stubs = Connect(options);
  Seen seen;
  const Clock::time_point began = Clock::now();
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < options.streams; ++i) {
    const auto at = static_cast<size_t>(i);
    streams.push_back(std::make_unique<Stream>(*stubs[at % stubs.size()],
                                               options.jobs[at % options.jobs.size()], seen));
  }
  if (!seen.AwaitAttached(options.streams, options.timeout_s)) return Fail(seen.error());
  std::cout << Json{{"attach_s", Seconds(Clock::now() - began)}} << std::endl;
  std::string go;
  std::getline(std::cin, go);

  const double cpu_before = CpuSeconds();
  const Clock::time_point start = Clock::now();
  for (const std::string& job : options.jobs) {
    const grpc::Status cancelled = Cancel(*stubs.front(), job);
    if (!cancelled.ok()) return Fail(cancelled.error_message());
  }
  if (!seen.AwaitEnded(options.streams, options.timeout_s)) return Fail(seen.error());
  const double ended_s = Seconds(Clock::now() - start);
  const std::vector<double> reached = seen.CancelledAfter(start);
  if (reached.size() != streams.size()) return Fail("a stream ended without its job's CANCELLED");
  const auto at = [&](double share) {
    return reached[static_cast<size_t>(std::ceil(share * static_cast<double>(reached.size()))) - 1];
  };
  std::cout << Json{{"reach_median_s", at(0.5)},
                    {"reach_p99_s", at(0.99)},
                    {"reach_all_s", reached.back()},
                    {"ended_s", ended_s},
                    {"client_cpu_s", CpuSeconds() - cpu_before}}
            << std::endl;
  return 0;
}

}  // namespace
}  // namespace quantry

int main(int argc, char** argv) {
  quantry::Options options;
  CLI::App app("Many watches of a quantryd: until a cancel has reached all of them.");
  app.add_option("--server", options.server, "HOST:PORT of the tenant API")
      ->envname("QUANTRY_SERVER");
  app.add_option("--job", options.jobs, "Full name of a queued job; repeatable")->required();
  app.add_option("--streams", options.streams, "Watches")->check(CLI::Range(1, 1'000'000));
  app.add_option("--timeout", options.timeout_s, "Seconds for attaching, and for the end");
  CLI11_PARSE(app, argc, argv);
  return quantry::Run(options);
}
