#include "server/rpc/call.h"

#include <grpc/grpc_security_constants.h>

#include <chrono>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/log.h"
#include "common/trace_context.h"
#include "common/utf8_prefix.h"
#include "google/rpc/status.pb.h"

namespace quantry::server {
namespace {

// Clients take 8 KiB of trailers by default, message and details together.
constexpr size_t kMaxMessageBytes = 1500;
constexpr size_t kMaxDetailBytes = 4500;

// Whether a request only asks what would happen.
bool IsTrial(const google::protobuf::Message& request) {
  const auto* field = request.GetDescriptor()->FindFieldByName("validate_only");
  return field != nullptr && request.GetReflection()->GetBool(request, field);
}

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

Presented PresentedBy(const grpc::CallbackServerContext& context) {
  Presented presented;
  const auto& metadata = context.client_metadata();
  const auto [first, last] = metadata.equal_range("authorization");
  if (first != last) presented.authorization.assign(first->second.data(), first->second.size());
  // Two of them: neither is believed.
  if (first != last && std::next(first) != last) presented.authorization = "several";
  if (const auto peer = context.auth_context(); peer != nullptr) {
    const auto pem = peer->FindPropertyValues(GRPC_X509_PEM_CERT_PROPERTY_NAME);
    if (!pem.empty()) presented.certificate_pem.assign(pem[0].data(), pem[0].size());
  }
  return presented;
}

// What the caller sent as its traceparent; "" when it sent none.
std::string_view GivenTraceparent(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(kTraceparentKey);
  if (found == metadata.end()) return "";
  return {found->second.data(), found->second.size()};
}

std::string TraceparentOf(const grpc::CallbackServerContext& context) {
  const auto trace = ParseTraceparent(GivenTraceparent(context));
  return trace ? FormatTraceparent(*trace) : "";
}

void WarnOfBadTraceparent(const grpc::CallbackServerContext& context) {
  constexpr size_t kShown = 100;
  log::Warning("a traceparent that is none is ignored",
               {{"got", GivenTraceparent(context).substr(0, kShown)}, {"peer", context.peer()}});
}

// The deadline that the caller set; unset when it set none.
std::optional<MonotonicTime> OwnDeadline(const grpc::CallbackServerContext& context) {
  const auto wanted = context.deadline();
  if (wanted == std::chrono::system_clock::time_point::max()) return std::nullopt;
  // Far deadlines would overflow the conversion.
  const auto left = std::min<std::chrono::system_clock::duration>(
      wanted - std::chrono::system_clock::now(), std::chrono::hours(24));
  return std::chrono::steady_clock::now() + left;
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status proto = ToRpcStatus(status);
  if (proto.message().size() > kMaxMessageBytes) {
    proto.set_message(Utf8Prefix(proto.message(), kMaxMessageBytes) + "...");
  }
  while (proto.details_size() > 0 && proto.ByteSizeLong() > kMaxMessageBytes + kMaxDetailBytes) {
    proto.mutable_details()->RemoveLast();
  }
  return grpc::Status(static_cast<grpc::StatusCode>(proto.code()), proto.message(),
                      proto.SerializeAsString());
}

bool StreamCounts::Add(const std::string& name, std::int64_t limit) {
  const std::lock_guard lock(mutex_);
  std::int64_t& count = counts_[name];
  if (count >= limit) return false;
  ++count;
  return true;
}

void StreamCounts::Remove(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto found = counts_.find(name);
  if (found != counts_.end() && --found->second == 0) counts_.erase(found);
}

absl::Status CountedPlace::Take(const std::optional<Principal>& principal,
                                const PlaceLimit& limit) {
  if (!principal) return absl::OkStatus();
  if (!counts_->Add(principal->key(), limit.most)) {
    return MakeDetailedError(
        Reason::kResourceLimit,
        absl::StrCat(principal->name, " has ", limit.most, " ", std::string(limit.what),
                     " at this server, which is the limit; ", std::string(limit.advice)),
        {.retry_after = limit.retry_after});
  }
  counted_as_ = principal->key();
  return absl::OkStatus();
}

void CountedPlace::GiveBack() {
  if (counted_as_) counts_->Remove(*counted_as_);
  counted_as_.reset();
}

Call::Call(std::string_view method, const RpcRuntime* runtime, grpc::CallbackServerContext* context)
    : method_(method),
      runtime_(runtime),
      context_(context),
      deadline_(OwnDeadline(*context)),
      traceparent_(TraceparentOf(*context)),
      trace_id_(TraceIdOf(traceparent_)),
      start_(std::chrono::steady_clock::now()),
      permission_(FindPermission(method)) {
  runtime_->metrics->call_started.With({method_}).Increment();
  if (runtime_->auth != nullptr) presented_ = PresentedBy(*context);
}

absl::Status Call::Admit(const google::protobuf::Message* request) {
  absl::Status admitted = Authorize(request);
  // Of the admitted alone: no stranger writes lines into the log.
  if (admitted.ok() && traceparent_.empty() && !GivenTraceparent(*context_).empty()) {
    WarnOfBadTraceparent(*context_);
  }
  return admitted;
}

absl::Status Call::Authorize(const google::protobuf::Message* request) {
  if (runtime_->auth == nullptr) return absl::OkStatus();
  if (permission_ == nullptr) {
    return MakeError(Reason::kInternal, absl::StrCat(method_, " has no row of permissions"));
  }
  generation_ = runtime_->auth->generation();
  auto principal = runtime_->auth->Authenticate(presented_, runtime_->wall_clock->Now());
  if (!principal.ok()) return principal.status();
  principal_ = *std::move(principal);
  if (request != nullptr) {
    resource_ = ResourceOf(*permission_, *request);
    told_ = ToldOf(*permission_, *request);
    trial_ = IsTrial(*request);
  }
  if (absl::Status status = CheckRole(*permission_, *principal_); !status.ok()) return status;
  return request == nullptr ? absl::OkStatus() : CheckTenant(*permission_, *principal_, *request);
}

absl::Status Call::AdmitName(const google::protobuf::Message& request) {
  if (!principal_) return absl::OkStatus();
  resource_ = ResourceOf(*permission_, request);
  return CheckTenant(*permission_, *principal_, request);
}

absl::Status Call::Standing() {
  if (!principal_) return absl::OkStatus();
  const Time now = runtime_->wall_clock->Now();
  const bool ended = principal_->expire_time && *principal_->expire_time <= now;
  const std::uint64_t generation = runtime_->auth->generation();
  if (!ended && generation == generation_) return absl::OkStatus();
  auto again = runtime_->auth->Authenticate(presented_, now);
  if (!again.ok()) return again.status();
  // The same token may have got less to say meanwhile.
  if (again->role != principal_->role || again->tenant != principal_->tenant) {
    return MakeError(Reason::kUnauthenticated,
                     absl::StrCat("the role or tenant of ", again->name, " changed; call again"),
                     {{"cause", "changed"}});
  }
  principal_ = *std::move(again);
  generation_ = generation;
  return absl::OkStatus();
}

std::optional<Duration> Call::credential_left() const {
  if (!principal_ || !principal_->expire_time) return std::nullopt;
  // Far ends would overflow what is computed with them; by then somebody has looked again.
  return std::min<Duration>(*principal_->expire_time - runtime_->wall_clock->Now(),
                            std::chrono::hours(24));
}

absl::Status Call::Awaited() const {
  // First: gRPC cancels what is past its deadline.
  if (deadline_ && *deadline_ <= std::chrono::steady_clock::now()) {
    return MakeError(Reason::kDeadlineExceeded,
                     "the caller's deadline passed before the answer was there; allow more time");
  }
  return context_->IsCancelled() ? absl::CancelledError("the caller went away") : absl::OkStatus();
}

void Call::Made(const google::protobuf::Message& response) {
  if (!principal_ || trial_) return;
  if (std::string made = MadeBy(*permission_, response); !made.empty()) resource_ = std::move(made);
}

void Call::Audit(const absl::Status& status) const {
  const bool denied = status.code() == absl::StatusCode::kUnauthenticated ||
                      status.code() == absl::StatusCode::kPermissionDenied;
  if (denied) runtime_->metrics->calls_denied.With({StatusName(status.code())}).Increment();
  if (!principal_ || !permission_->changes || (trial_ && !denied)) return;
  runtime_->metrics->audit_lines.With({status.ok() ? "ok" : "error"}).Increment();
  log::Audit({{"principal", principal_->name},
              {"role", RoleName(principal_->role)},
              {"tenant", principal_->tenant},
              {"rpc", permission_->method},
              {"resource", resource_},
              {"request", told_},
              {"outcome", StatusName(status.code())},
              {"reason", ReasonOf(status)}});
}

grpc::Status Call::End(const absl::Status& status) {
  const log::TraceScope trace(trace_id_);
  Audit(status);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start_;
  const std::string code = StatusName(status.code());
  runtime_->metrics->call_duration.With({method_, code}).Observe(took.count());
  if (IsServerFault(status)) {
    runtime_->metrics->server_faults.With({method_}).Increment();
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
  const auto own = OwnDeadline(context);
  return own ? *own : std::chrono::steady_clock::now() + kDefaultUnaryDeadline;
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
