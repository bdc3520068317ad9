// Load on a running quantryd, as JSON on stdout.
//
//   quantry_submit_load --server HOST:PORT --model-path DIR [--rate 200] [--seconds 10]
//     Open loop: CreateQuantizationJob calls leave at their times whether or not
//     earlier ones have answered, so a slow server shows as latency, not as a
//     lower rate. Latency counts from the planned time (no coordinated
//     omission).
//   quantry_submit_load --server HOST:PORT --model-path DIR --mode start [--jobs 20]
//     Submit to engine started, one small job after the other on an idle
//     worker: from the call to the first event of the engine in the watch
//     stream. Cancels each job when it has started.
//
// DIR lies below one of the server's local roots. Jobs of the first mode stay
// queued or run: point it at a server without workers (--embedded=false) or at
// one to throw away.
#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "common/ids.h"
#include "quantry/v1/quantization_service.grpc.pb.h"

namespace quantry {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;
using Stub = v1::QuantizationService::Stub;

struct Options {
  std::string server = "127.0.0.1:7070";
  std::string tenant = "default";
  std::string model_path;
  std::string mode = "submit";
  double rate = 200;
  double seconds = 10;
  int channels = 4;  // connections the calls are spread over
  int jobs = 20;
  double timeout_s = 30;
};

double Millis(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

// Nearest-rank percentile of sorted values.
double Percentile(const std::vector<double>& sorted, double share) {
  if (sorted.empty()) return 0;
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

Json Summary(std::vector<double> ms) {
  std::sort(ms.begin(), ms.end());
  return {{"p50", Percentile(ms, 0.50)},
          {"p90", Percentile(ms, 0.90)},
          {"p99", Percentile(ms, 0.99)},
          {"max", ms.empty() ? 0 : ms.back()}};
}

v1::CreateQuantizationJobRequest MakeRequest(const Options& options) {
  v1::CreateQuantizationJobRequest request;
  request.set_parent(FormatTenantName(options.tenant));
  request.set_request_id(NewUuid4());
  v1::JobSpec* spec = request.mutable_quantization_job()->mutable_spec();
  spec->mutable_model()->set_local_path(options.model_path);
  v1::WeightGrid* grid = spec->mutable_method()->mutable_rtn()->mutable_grid();
  grid->set_bits(4);
  grid->set_group_size(-1);
  return request;
}

std::vector<std::unique_ptr<Stub>> Connect(const Options& options) {
  std::vector<std::unique_ptr<Stub>> stubs;
  for (int i = 0; i < options.channels; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    const auto channel =
        grpc::CreateCustomChannel(options.server, grpc::InsecureChannelCredentials(), arguments);
    channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(5));
    stubs.push_back(v1::QuantizationService::NewStub(channel));
  }
  return stubs;
}

// One call in flight; owns what gRPC writes into.
struct PendingCall {
  grpc::ClientContext context;
  v1::CreateQuantizationJobResponse response;
  grpc::Status status;
  Clock::time_point planned;
  std::unique_ptr<grpc::ClientAsyncResponseReader<v1::CreateQuantizationJobResponse>> reader;
};

struct Outcome {
  std::vector<double> latency_ms;
  std::map<std::string, int> errors;
  Clock::time_point last;
};

// Takes answers until the queue is shut down and empty.
void Collect(grpc::CompletionQueue& queue, Outcome& outcome) {
  void* tag = nullptr;
  bool ok = false;
  while (queue.Next(&tag, &ok)) {
    const std::unique_ptr<PendingCall> call(static_cast<PendingCall*>(tag));
    outcome.last = Clock::now();
    if (call->status.ok()) {
      outcome.latency_ms.push_back(Millis(outcome.last - call->planned));
    } else {
      ++outcome.errors[call->status.error_message().substr(0, 120)];
    }
  }
}

Json RunSubmit(const Options& options) {
  const auto stubs = Connect(options);
  grpc::CompletionQueue queue;
  Outcome outcome;
  std::jthread collector([&] { Collect(queue, outcome); });
  const auto count = static_cast<int64_t>(options.rate * options.seconds);
  const Clock::time_point start = Clock::now();
  for (int64_t i = 0; i < count; ++i) {
    const auto planned =
        start + std::chrono::duration_cast<Clock::duration>(
                    std::chrono::duration<double>(static_cast<double>(i) / options.rate));
    std::this_thread::sleep_until(planned);
    auto call = std::make_unique<PendingCall>();
    call->planned = planned;
    call->context.set_deadline(
        std::chrono::system_clock::now() +
        std::chrono::milliseconds(static_cast<int64_t>(options.timeout_s * 1000)));
    Stub& stub = *stubs[static_cast<size_t>(i) % stubs.size()];
    call->reader = stub.AsyncCreateQuantizationJob(&call->context, MakeRequest(options), &queue);
    PendingCall* tag = call.release();
    tag->reader->Finish(&tag->response, &tag->status, tag);
  }
  queue.Shutdown();
  collector.join();
  const double elapsed = std::chrono::duration<double>(outcome.last - start).count();
  return {{"mode", "submit"},
          {"calls", count},
          {"wanted_rate", options.rate},
          {"achieved_rate", static_cast<double>(outcome.latency_ms.size()) / elapsed},
          {"latency_ms", Summary(outcome.latency_ms)},
          {"errors", outcome.errors}};
}

// Whether this message proves that the engine runs: LOADING is its first stage.
bool EngineStarted(const v1::WatchQuantizationJobResponse& message) {
  const auto beyond_fetching = [](v1::Stage stage) { return stage >= v1::STAGE_LOADING; };
  switch (message.kind_case()) {
    case v1::WatchQuantizationJobResponse::kSnapshot:
      return beyond_fetching(message.snapshot().progress().stage());
    case v1::WatchQuantizationJobResponse::kProgress:
      return beyond_fetching(message.progress().stage());
    case v1::WatchQuantizationJobResponse::kEvent:
      return message.event().has_block_done() ||
             beyond_fetching(message.event().stage_changed().stage());
    default:
      return false;
  }
}

// Watches to the first sign of the engine; then to the end, cancelled, so that
// the next job finds the worker idle. -1: it never started.
double WatchStart(Stub& stub, const std::string& name, Clock::time_point submitted) {
  grpc::ClientContext context;
  v1::WatchQuantizationJobRequest request;
  request.set_name(name);
  const auto reader = stub.WatchQuantizationJob(&context, request);
  v1::WatchQuantizationJobResponse message;
  double started_ms = -1;
  while (reader->Read(&message)) {
    if (started_ms >= 0 || !EngineStarted(message)) continue;
    started_ms = Millis(Clock::now() - submitted);
    grpc::ClientContext cancel_context;
    v1::CancelQuantizationJobRequest cancel;
    cancel.set_name(name);
    v1::QuantizationJob job;
    (void)stub.CancelQuantizationJob(&cancel_context, cancel, &job);
  }
  (void)reader->Finish();
  return started_ms;
}

Json RunStart(const Options& options) {
  const auto stubs = Connect(options);
  Stub& stub = *stubs.front();
  std::vector<double> started_ms;
  std::map<std::string, int> errors;
  for (int i = 0; i < options.jobs; ++i) {
    grpc::ClientContext context;
    v1::CreateQuantizationJobResponse response;
    const Clock::time_point submitted = Clock::now();
    const grpc::Status status =
        stub.CreateQuantizationJob(&context, MakeRequest(options), &response);
    if (!status.ok()) {
      ++errors[status.error_message().substr(0, 120)];
      continue;
    }
    const double ms = WatchStart(stub, response.quantization_job().name(), submitted);
    if (ms >= 0) {
      started_ms.push_back(ms);
    } else {
      ++errors["the job ended before its engine was seen"];
    }
  }
  return {{"mode", "start"},
          {"jobs", options.jobs},
          {"started", started_ms.size()},
          {"submit_to_engine_started_ms", Summary(started_ms)},
          {"errors", errors}};
}

}  // namespace
}  // namespace quantry

int main(int argc, char** argv) {
  quantry::Options options;
  CLI::App app("Open-loop load on a quantryd: latency of submits, or submit to engine started.");
  app.add_option("--server", options.server, "HOST:PORT of the tenant API")
      ->envname("QUANTRY_SERVER");
  app.add_option("--tenant", options.tenant, "Tenant to submit as");
  app.add_option("--model-path", options.model_path, "Checkpoint folder below a local root")
      ->required();
  app.add_option("--mode", options.mode, "submit: latency at a rate; start: until the engine runs")
      ->check(CLI::IsMember({"submit", "start"}));
  app.add_option("--rate", options.rate, "Submits a second")->check(CLI::PositiveNumber);
  app.add_option("--seconds", options.seconds, "Length of the run")->check(CLI::PositiveNumber);
  app.add_option("--channels", options.channels, "Connections")->check(CLI::Range(1, 64));
  app.add_option("--jobs", options.jobs, "Jobs of --mode start")->check(CLI::Range(1, 100000));
  CLI11_PARSE(app, argc, argv);
  const quantry::Json result =
      options.mode == "submit" ? quantry::RunSubmit(options) : quantry::RunStart(options);
  std::cout << result.dump(2) << std::endl;
  return result["errors"].empty() ? 0 : 1;
}
