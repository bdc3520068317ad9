#include "server/rpc/call.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/log.h"
#include "google/rpc/status.pb.h"

namespace quantry::server {
namespace {

// Clients take 8 KiB of trailers by default, message and details together.
constexpr size_t kMaxMessageBytes = 1500;
constexpr size_t kMaxDetailBytes = 4500;

// Codes a client cannot cause, but for two reasons.
bool IsServerFault(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kUnavailable:
      return !HasReason(status, Reason::kServerDraining) &&
             !HasReason(status, Reason::kBlobMismatch);
    default:
      return false;
  }
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status proto = ToRpcStatus(status);
  if (proto.message().size() > kMaxMessageBytes) {
    proto.mutable_message()->resize(kMaxMessageBytes);
    proto.mutable_message()->append("...");
  }
  while (proto.details_size() > 0 && proto.ByteSizeLong() > kMaxMessageBytes + kMaxDetailBytes) {
    proto.mutable_details()->RemoveLast();
  }
  return grpc::Status(static_cast<grpc::StatusCode>(proto.code()), proto.message(),
                      proto.SerializeAsString());
}

Call::Call(std::string_view method, ServerMetrics* metrics)
    : method_(method), metrics_(metrics), start_(std::chrono::steady_clock::now()) {
  metrics_->call_started.With({method_}).Increment();
}

grpc::Status Call::End(const absl::Status& status) {
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start_;
  const std::string code = StatusName(status.code());
  metrics_->call_duration.With({method_, code}).Observe(took.count());
  if (IsServerFault(status)) {
    metrics_->log_errors.Increment();
    log::Error("call failed", {{"method", method_},
                               {"code", code},
                               {"reason", ReasonOf(status)},
                               {"error", std::string(status.message())},
                               {"seconds", took.count()}});
  } else {
    log::Debug("call", {{"method", method_}, {"code", code}, {"seconds", took.count()}});
  }
  return ToGrpcStatus(status);
}

MonotonicTime RpcRuntime::Deadline(const grpc::CallbackServerContext& context) {
  const auto now = std::chrono::steady_clock::now();
  const auto wanted = context.deadline();
  if (wanted == std::chrono::system_clock::time_point::max()) return now + kDefaultUnaryDeadline;
  // Far deadlines would overflow the conversion.
  const auto left = std::min<std::chrono::system_clock::duration>(
      wanted - std::chrono::system_clock::now(), std::chrono::hours(24));
  return now + left;
}

absl::Status RpcRuntime::CheckStart(const grpc::CallbackServerContext& context,
                                    MonotonicTime deadline) {
  if (context.IsCancelled()) return absl::CancelledError("the caller went away");
  if (std::chrono::steady_clock::now() < deadline) return absl::OkStatus();
  return MakeError(Reason::kDeadlineExceeded,
                   "the deadline passed while the call waited for its turn; the server is busy");
}

absl::Status RpcRuntime::Overloaded() {
  return MakeDetailedError(Reason::kResourceLimit,
                           "the server has too many calls waiting; try again in a second",
                           {.retry_after = std::chrono::seconds(1)});
}

absl::Status RpcRuntime::Draining() {
  return MakeDetailedError(Reason::kServerDraining,
                           "the server is shutting down; reconnect and go on",
                           {.retry_after = std::chrono::seconds(1)});
}

absl::Status RpcRuntime::UnimplementedError(std::string_view method, std::string_view instead) {
  const std::string name(method.substr(method.rfind('/') + 1));
  return MakeError(Reason::kUnimplementedRpc,
                   absl::StrCat(name, " is not part of this version; ", std::string(instead)),
                   {{"method", name}});
}

}  // namespace quantry::server
