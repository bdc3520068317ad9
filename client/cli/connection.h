#pragma once

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/backoff.h"
#include "client/cli/environment.h"
#include "client/cli/errors.h"
#include "client/cli/interrupt.h"
#include "client/cli/options.h"
#include "common/trace_context.h"
#include "quantry/v1/admin_service.grpc.pb.h"
#include "quantry/v1/artifact_service.grpc.pb.h"
#include "quantry/v1/quantization_service.grpc.pb.h"

namespace quantry::cli {

// Where the server is and where that came from, for messages.
struct ServerAddress {
  std::string target;  // HOST:PORT
  std::string source;  // "--server", "QUANTRY_SERVER", a file, "the default"
};

// The server of `global` (contexts.h), else the address file a local embedded
// server leaves in {data_dir}/run/tenant, else 127.0.0.1:7070.
ServerAddress ResolveServer(const Environment& env, const GlobalOptions& global);

// One channel to one server, with the credentials of `global`. Unary calls get the user's
// deadline and are repeated when the server is UNAVAILABLE, by gRPC, or cuts them off (those
// that are idempotent). Used by one thread; the interrupter cancels from its own.
class Connection {
 public:
  Connection(Environment& env, const GlobalOptions& global);

  using Jobs = v1::QuantizationService::StubInterface;
  using Artifacts = v1::ArtifactService::StubInterface;
  using Admin = v1::AdminService::StubInterface;
  Jobs& jobs() { return *jobs_; }
  Artifacts& artifacts() { return *artifacts_; }
  Admin& admin() { return *admin_; }

  const ServerAddress& address() const { return address_; }
  Environment& env() { return env_; }

  // The W3C trace all calls belong to: $TRACEPARENT, or a new one.
  const TraceContext& trace() const { return trace_; }
  // Asks for the job's spans to be recorded.
  void SampleTrace() { trace_.sampled = true; }
  // What every call carries, streams too.
  void AddMetadata(grpc::ClientContext& context) const;

  // Before a call that ended as `broken` tells is made again: looks the address up once more, as a
  // restarted local server may have another port, and connects anew when the server was without its
  // store, as there may be others behind the address.
  void Refresh(const absl::Status& broken);

  // Until the engine has told what it offers (20 s after a server's start at most), and for its
  // quotes (60 s, after their files are there), calls get at least this long.
  static constexpr std::chrono::seconds kEngineTime{30};
  static constexpr std::chrono::seconds kQuoteTime{90};

  // One unary call: connection.Call(connection.jobs(), &Connection::Jobs::Get..., request,
  // &response).
  template <typename Stub, typename Request, typename Response>
  absl::Status Call(Stub& stub,
                    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response,
                    std::chrono::milliseconds at_least = {}) {
    const std::chrono::milliseconds timeout = std::max(timeout_, at_least);
    const auto deadline = std::chrono::system_clock::now() + timeout;
    Backoff backoff = CutOffBackoff();
    for (int tries = 1;; ++tries) {
      const grpc::Status status = CallOnce(stub, method, request, response, deadline);
      if (!IsCutOff(status) || tries == kMostTries) return Explain(status, timeout);
      env_.sleep(backoff.Next(env_.random()));
    }
  }

  // The same, tried once: for what is refused when it was done before. The service configuration
  // knows them too.
  template <typename Stub, typename Request, typename Response>
  absl::Status CallOnlyOnce(Stub& stub,
                            grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                         Response*),
                            const Request& request, Response* response) {
    return Ask(stub, method, request, response, timeout_);
  }

  // The same, tried once and for `timeout` at most, or the user's deadline if that is shorter: for
  // what the caller can do without.
  template <typename Stub, typename Request, typename Response>
  absl::Status Ask(Stub& stub,
                   grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                   const Request& request, Response* response, std::chrono::milliseconds timeout) {
    timeout = std::min(timeout, timeout_);
    const auto deadline = std::chrono::system_clock::now() + timeout;
    return Explain(CallOnce(stub, method, request, response, deadline), timeout);
  }

  absl::StatusOr<v1::QuantizationJob> GetJob(const std::string& name);

  // The status in our form; a connection failure names the server.
  absl::Status Explain(const grpc::Status& status) const { return Explain(status, timeout_); }

 private:
  static constexpr int kMostTries = 4;

  template <typename Stub, typename Request, typename Response>
  grpc::Status CallOnce(
      Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
      const Request& request, Response* response, std::chrono::system_clock::time_point deadline) {
    grpc::ClientContext context;
    context.set_deadline(deadline);
    AddMetadata(context);
    const Interrupter::Guard guard(env_.interrupter, [&context] { context.TryCancel(); });
    return (stub.*method)(&context, request, response);
  }

  void Connect();
  // The server ended the call without an answer: it cancels what is still open
  // when its drain takes too long.
  bool IsCutOff(const grpc::Status& status) const;
  bool Interrupted() const;
  absl::Status Explain(const grpc::Status& status, std::chrono::milliseconds timeout) const;
  static Backoff CutOffBackoff();

  Environment& env_;
  const GlobalOptions& global_;
  const std::chrono::milliseconds timeout_;
  ServerAddress address_;
  TraceContext trace_;
  std::shared_ptr<grpc::ChannelCredentials> credentials_;  // null: its files broke
  std::unique_ptr<Jobs> jobs_;
  std::unique_ptr<Artifacts> artifacts_;
  std::unique_ptr<Admin> admin_;
};

}  // namespace quantry::cli
