#include "client/cli/connection.h"

#include <fstream>
#include <ostream>

#include "client/cli/contexts.h"
#include "client/cli/hints.h"
#include "client/cli/text.h"
#include "common/errors.h"
#include "common/grpc_credentials.h"

namespace quantry::cli {
namespace {

constexpr char kDefaultServer[] = "127.0.0.1:7070";
// Lists without pages (workers) grow with the cluster; gRPC's default is 4 MiB.
constexpr int kMaxMessageBytes = 64 << 20;

// Retries for the unary calls: creates carry a request id, most others are
// idempotent by nature. Not those of which a second one is refused because the
// first, whose answer was lost, was done. Streams have retries of their own with a
// resume point.
constexpr char kServiceConfig[] = R"({"methodConfig": [{
  "name": [{"service": "quantry.v1.QuantizationService"}, {"service": "quantry.v1.AdminService"},
           {"service": "quantry.v1.ArtifactService", "method": "FindMissingBlobs"},
           {"service": "quantry.v1.ArtifactService", "method": "GetArtifact"},
           {"service": "quantry.v1.ArtifactService", "method": "ListArtifacts"}],
  "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s",
                  "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}, {
  "name": [{"service": "quantry.v1.QuantizationService", "method": "DeleteQuantizationJob"},
           {"service": "quantry.v1.QuantizationService", "method": "UpdateQuantizationJob"},
           {"service": "quantry.v1.QuantizationService", "method": "WatchQuantizationJob"}]}]})";

std::string FirstLine(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// quantryd's default data folder, as proto/quantry/v1/config.proto has it.
std::string DataDir(const Environment& env) {
  if (std::string dir = env.variable("QUANTRY_DATA_DIR"); !dir.empty()) return dir;
  if (const std::string dir = env.variable("XDG_STATE_HOME"); !dir.empty()) return dir + "/quantry";
  return env.variable("HOME") + "/.local/state/quantry";
}

// gRPC's "failed to connect to all addresses; last error: ...: Connection
// refused" comes down to its last words.
std::string LastWords(const std::string& message) {
  const size_t colon = message.rfind(": ");
  return colon == std::string::npos ? message : message.substr(colon + 2);
}

bool IsLocal(const std::string& target) {
  return IsLoopbackTarget(target) || target.rfind("unix:", 0) == 0;
}

// Spans are recorded only where somebody asked for them.
TraceContext TraceOf(Environment& env) {
  const std::string given = env.variable("TRACEPARENT");
  if (auto trace = ParseTraceparent(given)) return *std::move(trace);
  if (!given.empty()) {
    env.err << "quantry: TRACEPARENT is no W3C traceparent and ignored; wanted "
               "00-{32 hex digits}-{16 hex digits}-{00 or 01}\n";
  }
  return NewTrace(/*sampled=*/false);
}

grpc::ChannelArguments Arguments(const std::string& target) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetServiceConfigJSON(kServiceConfig);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0);
  // A restarted server is found again within a second or two.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  // Another process's dead channel to the same target is none of ours.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (IsLocal(target)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

}  // namespace

ServerAddress ResolveServer(const Environment& env, const GlobalOptions& global) {
  if (!global.server.empty()) return {global.server, global.server_source};
  const std::string file = DataDir(env) + "/run/tenant";
  if (std::string server = FirstLine(file); !server.empty()) return {std::move(server), file};
  return {kDefaultServer, "the default"};
}

Connection::Connection(Environment& env, const GlobalOptions& global)
    : env_(env),
      global_(global),
      timeout_(static_cast<int64_t>(global.timeout_s * 1000)),
      address_(ResolveServer(env, global)),
      trace_(TraceOf(env)) {
  Connect();
}

void Connection::Connect() {
  // Checked before the command began; a file that broke since makes a channel
  // on which every call fails with gRPC's words.
  credentials_ = MakeChannelCredentials(SecurityOf(global_), address_.target).value_or(nullptr);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(address_.target, credentials_, Arguments(address_.target));
  jobs_ = v1::QuantizationService::NewStub(channel);
  artifacts_ = v1::ArtifactService::NewStub(channel);
  admin_ = v1::AdminService::NewStub(channel);
}

void Connection::AddMetadata(grpc::ClientContext& context) const {
  context.AddMetadata(kTraceparentKey, FormatTraceparent(trace_));
}

void Connection::Refresh(const absl::Status& broken) {
  ServerAddress address = ResolveServer(env_, global_);
  if (address.target == address_.target && !HasReason(broken, Reason::kStoreUnavailable)) return;
  address_ = std::move(address);
  Connect();
}

absl::StatusOr<v1::QuantizationJob> Connection::GetJob(const std::string& name) {
  v1::GetQuantizationJobRequest request;
  request.set_name(name);
  v1::QuantizationJob job;
  absl::Status status = Call(*jobs_, &Jobs::GetQuantizationJob, request, &job);
  if (!status.ok()) return status;
  return job;
}

Backoff Connection::CutOffBackoff() {
  return {std::chrono::milliseconds(100), std::chrono::seconds(1)};
}

bool Connection::Interrupted() const {
  return env_.interrupter != nullptr && env_.interrupter->fired() != 0;
}

bool Connection::IsCutOff(const grpc::Status& status) const {
  return status.error_code() == grpc::StatusCode::CANCELLED && status.error_details().empty() &&
         !Interrupted();
}

absl::Status Connection::Explain(const grpc::Status& status,
                                 std::chrono::milliseconds timeout) const {
  if (IsCutOff(status)) {
    return WithNext(
        absl::UnavailableError(Cat("the server at ", address_.target, " (", address_.source,
                                   ") ended the call without an answer: it is shutting down")),
        "run the same command again when it is back");
  }
  if (status.error_code() == grpc::StatusCode::CANCELLED && Interrupted()) {
    return absl::CancelledError("interrupted");
  }
  const bool from_server = !status.error_details().empty();
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE && !from_server) {
    return WithNext(
        absl::UnavailableError(Cat("no answer from the server at ", address_.target, " (",
                                   address_.source, "): ", LastWords(status.error_message()))),
        ConnectionHint(status.error_message(), !global_.tls_ca.empty(),
                       !global_.client_cert.empty()));
  }
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED && !from_server) {
    return absl::DeadlineExceededError(Cat("the server at ", address_.target, " (", address_.source,
                                           ") did not answer within ",
                                           std::chrono::duration<double>(timeout).count(), " s"));
  }
  return FromGrpc(status);
}

}  // namespace quantry::cli
