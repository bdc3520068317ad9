#include "worker/agent/worker_client.h"

#include <algorithm>
#include <condition_variable>
#include <optional>
#include <thread>
#include <utility>

#include "common/clock.h"
#include "common/errors.h"
#include "common/jitter.h"
#include "common/log.h"
#include "google/protobuf/util/time_util.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/grpcpp.h"
#include "quantry/v1/worker_service.grpc.pb.h"

namespace quantry::agent {
namespace {

using google::protobuf::util::TimeUtil;
using std::chrono::milliseconds;

constexpr milliseconds kUnaryDeadline{10000};
// Above the long poll's 20 s, so that the server always answers first.
constexpr milliseconds kAcquireSlack{10000};
constexpr int kMaxCallBytes = 16 << 20;
// A server that stays away at the start is told again after this long.
constexpr std::chrono::minutes kTellAgain{1};

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  google::rpc::Status details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details()) &&
      details.code() == static_cast<int>(status.error_code())) {
    return FromRpcStatus(details);
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// The server took nothing, for want of room or of threads. RESOURCE_EXHAUSTED says as much
// of a message that is too large, which will be so again.
bool NoRoomNow(const absl::Status& status) {
  if (HasReason(status, Reason::kDiskFull)) return true;
  return HasReason(status, Reason::kResourceLimit) && RetryAfterOf(status).has_value();
}

bool WorthRepeating(const absl::Status& status) {
  // A renewed token file counts at the next try, and the lease ends it if none
  // comes: no result is lost for it.
  if (absl::IsUnauthenticated(status) || NoRoomNow(status)) return true;
  // quantryd gives its errors a reason: this is a torn stream, or something between here and it.
  if ((absl::IsUnknown(status) || absl::IsInternal(status)) && ReasonOf(status).empty())
    return true;
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsAborted(status);
}

// CANCELLED that was not asked for here: the server ends what it could not
// answer before it stopped. The call may or may not have had its effect.
absl::Status UnlessEndedThere(absl::Status status, const std::stop_token& stop) {
  if (!absl::IsCancelled(status) || stop.stop_requested() || !ReasonOf(status).empty()) {
    return status;
  }
  return absl::UnavailableError("the server ended the call; it is probably shutting down");
}

// Full jitter: anything between nothing and the step.
milliseconds Jitter(milliseconds step) { return RandomTime(milliseconds(0), step); }

// Sleeps unless `stop` comes first.
void Pause(milliseconds time, std::stop_token stop) {
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  wake.wait_for(lock, stop, time, [] { return false; });
}

// Sleeps while `keep_trying` holds, looking at it every 50 ms.
bool PauseWhile(milliseconds time, const KeepTrying& keep_trying) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
    if (!keep_trying()) return false;
    const auto left = std::chrono::ceil<milliseconds>(end - std::chrono::steady_clock::now());
    std::this_thread::sleep_for(std::clamp(left, milliseconds(0), milliseconds(50)));
  }
  return keep_trying();
}

milliseconds OrDefault(const google::protobuf::Duration& duration, milliseconds fallback) {
  const std::int64_t ms = TimeUtil::DurationToMilliseconds(duration);
  return ms > 0 ? milliseconds(ms) : fallback;
}

}  // namespace

struct WorkerClient::Connection {
  std::unique_ptr<v1::WorkerService::Stub> stub;
};

WorkerClient::WorkerClient(const std::string& address, v1::WorkerInfo info,
                           std::shared_ptr<grpc::ChannelCredentials> credentials)
    : address_(address),
      info_(std::move(info)),
      credentials_(credentials ? std::move(credentials) : grpc::InsecureChannelCredentials()),
      connection_(Connect()) {}

WorkerClient::~WorkerClient() = default;

std::shared_ptr<WorkerClient::Connection> WorkerClient::Connect() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 60000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  // A restarted server is found again well within a lease.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(kMaxCallBytes);
  return std::make_shared<Connection>(Connection{
      v1::WorkerService::NewStub(grpc::CreateCustomChannel(address_, credentials_, arguments))});
}

void WorkerClient::Reconsider(const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  if (!HasReason(status, Reason::kStoreUnavailable)) {
    store_away_since_.reset();
    return;
  }
  const auto now = std::chrono::steady_clock::now();
  if (!store_away_since_) store_away_since_ = now;
  if (now - *store_away_since_ < timing_.ttl / 2) return;
  log::Warning("the server is without its store for long, connecting anew",
               {{"error", std::string(status.message())}});
  connection_ = Connect();  // calls that run hold the old one
  store_away_since_ = now;
}

template <typename Use>
absl::Status WorkerClient::Ask(std::stop_token stop, milliseconds deadline, const Use& use) {
  std::shared_ptr<Connection> connection;
  {
    const std::lock_guard lock(mutex_);
    connection = connection_;
  }
  grpc::ClientContext context;
  const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  context.set_deadline(std::chrono::system_clock::now() + deadline);
  absl::Status status = UnlessEndedThere(FromGrpc(use(*connection->stub, &context)), stop);
  Reconsider(status);
  return status;
}

std::string WorkerClient::session() const {
  const std::lock_guard lock(mutex_);
  return session_;
}

LeaseTiming WorkerClient::timing() const {
  const std::lock_guard lock(mutex_);
  return timing_;
}

absl::Status WorkerClient::RegisterOnce(std::stop_token stop) {
  v1::RegisterWorkerRequest request;
  *request.mutable_worker() = info_;
  v1::RegisterWorkerResponse response;
  const auto status = Ask(stop, kUnaryDeadline, [&](auto& stub, auto* context) {
    return stub.RegisterWorker(context, request, &response);
  });
  if (!status.ok()) return status;
  const std::lock_guard lock(mutex_);
  session_ = response.session();
  timing_.ttl = OrDefault(response.lease_ttl(), timing_.ttl);
  timing_.heartbeat_interval = OrDefault(response.heartbeat_interval(), timing_.heartbeat_interval);
  return absl::OkStatus();
}

absl::Status WorkerClient::Register(std::stop_token stop) {
  DoublingWait wait = WaitForServer();
  std::optional<MonotonicTime> told;
  while (!stop.stop_requested()) {
    const auto status = RegisterOnce(stop);
    // A worker without the right credential says so at its start.
    const bool stranger = absl::IsUnauthenticated(status);
    if (status.ok() || stranger || !WorthRepeating(status)) return status;
    const MonotonicTime now = std::chrono::steady_clock::now();
    if (!stop.stop_requested() && (!told || now - *told >= kTellAgain)) {
      told = now;
      log::Warning(
          "no server answers yet, trying again: does --server name its worker port, and does it "
          "want TLS (--tls-ca-file)?",
          {{"error", status.ToString()}});
    }
    Pause(Jitter(wait.Next()), stop);
  }
  return absl::CancelledError("stopped before the server answered");
}

template <typename Response, typename Request, typename Method>
absl::StatusOr<Response> WorkerClient::Call(Method method, Request request, milliseconds deadline,
                                            std::stop_token stop) {
  absl::Status status;
  for (int attempt = 0; attempt < 2; ++attempt) {
    request.set_session(session());
    Response response;
    status = Ask(stop, deadline, [&](auto& stub, auto* context) {
      return (stub.*method)(context, request, &response);
    });
    if (status.ok()) return response;
    if (!HasReason(status, Reason::kUnknownWorker)) return status;
    log::Warning(
        "the server does not know this session any more: does another process have the same "
        "--worker-id? registering again",
        {{"worker", info_.worker_id()}});
    if (auto registered = RegisterOnce(stop); !registered.ok()) return registered;
  }
  return status;
}

template <typename Response, typename Request, typename Method>
absl::StatusOr<Response> WorkerClient::CallUntilAnswered(Method method, const Request& request,
                                                         const KeepTrying& keep_trying) {
  DoublingWait wait = WaitForServer();
  while (true) {
    auto response = Call<Response>(method, request, kUnaryDeadline);
    // Two threads that register at once replace each other's session.
    const bool replaced = HasReason(response.status(), Reason::kUnknownWorker);
    if (response.ok() || !(replaced || WorthRepeating(response.status()))) return response;
    if (!PauseWhile(Jitter(wait.Next()), keep_trying)) return response;
  }
}

absl::StatusOr<v1::AcquireJobResponse> WorkerClient::Acquire(const std::string& acquire_id,
                                                             milliseconds wait,
                                                             std::stop_token stop) {
  v1::AcquireJobRequest request;
  request.set_acquire_id(acquire_id);
  *request.mutable_wait() = TimeUtil::MillisecondsToDuration(wait.count());
  return Call<v1::AcquireJobResponse>(&v1::WorkerService::Stub::AcquireJob, std::move(request),
                                      wait + kAcquireSlack, stop);
}

absl::StatusOr<v1::HeartbeatResponse> WorkerClient::Heartbeat(v1::HeartbeatRequest request,
                                                              milliseconds deadline) {
  return Call<v1::HeartbeatResponse>(&v1::WorkerService::Stub::Heartbeat, std::move(request),
                                     deadline);
}

absl::Status WorkerClient::CommitCheckpoint(v1::CommitCheckpointRequest request,
                                            const KeepTrying& keep_trying) {
  return CallUntilAnswered<v1::CommitCheckpointResponse>(&v1::WorkerService::Stub::CommitCheckpoint,
                                                         request, keep_trying)
      .status();
}

absl::Status WorkerClient::Complete(v1::CompleteJobRequest request, const KeepTrying& keep_trying) {
  return CallUntilAnswered<v1::CompleteJobResponse>(&v1::WorkerService::Stub::CompleteJob, request,
                                                    keep_trying)
      .status();
}

absl::StatusOr<v1::FailJobResponse> WorkerClient::Fail(v1::FailJobRequest request,
                                                       const KeepTrying& keep_trying) {
  return CallUntilAnswered<v1::FailJobResponse>(&v1::WorkerService::Stub::FailJob, request,
                                                keep_trying);
}

absl::Status WorkerClient::Release(v1::ReleaseJobRequest request, const KeepTrying& keep_trying) {
  return CallUntilAnswered<v1::ReleaseJobResponse>(&v1::WorkerService::Stub::ReleaseJob, request,
                                                   keep_trying)
      .status();
}

}  // namespace quantry::agent
