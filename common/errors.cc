#include "common/errors.h"

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "common/utf8_prefix.h"
#include "google/protobuf/util/time_util.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace quantry {
namespace {

constexpr std::string_view kDomain = "quantry";
constexpr std::string_view kTypePrefix = "type.googleapis.com/";
constexpr Duration kStoreRetryDelay = std::chrono::seconds(1);
// Of one value: a caller's own text in it would push the reason out of the 8
// KiB of trailers that clients take.
constexpr std::size_t kMaxMetadataBytes = 1000;

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

template <typename Message>
std::string TypeUrl() {
  return std::string(kTypePrefix) + Message::descriptor()->full_name();
}

// Deterministic bytes: equal errors compare equal.
void SetDetail(const google::protobuf::Message& detail, absl::Status& status) {
  status.SetPayload(std::string(kTypePrefix) + detail.GetDescriptor()->full_name(),
                    absl::Cord(detail.SerializeAsString()));
}

template <typename Message>
std::optional<Message> GetDetail(const absl::Status& status) {
  std::optional<absl::Cord> payload;
  if (auto found = status.GetPayload(TypeUrl<Message>())) payload = *found;
  Message message;
  if (!payload || !message.ParseFromString(std::string(*payload))) return std::nullopt;
  return message;
}

bool IsReasonName(std::string_view name) {
  auto upper = [](char c) { return c >= 'A' && c <= 'Z'; };
  auto digit = [](char c) { return c >= '0' && c <= '9'; };
  return name.size() >= 3 && name.size() <= 63 && upper(name.front()) &&
         (upper(name.back()) || digit(name.back())) &&
         std::all_of(name.begin(), name.end(),
                     [&](char c) { return upper(c) || digit(c) || c == '_'; });
}

absl::Status WithInfo(absl::StatusCode code, std::string_view reason, std::string_view message,
                      const std::map<std::string, std::string>& metadata) {
  absl::Status status(code, ToAbsl(message));
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(std::string(kDomain));
  for (const auto& [key, value] : metadata) {
    const bool fits = value.size() <= kMaxMetadataBytes;
    (*info.mutable_metadata())[key] = fits ? value : Utf8Prefix(value, kMaxMetadataBytes) + "...";
  }
  SetDetail(info, status);
  return status;
}

void AddViolations(const ErrorDetails& details, absl::Status& status) {
  if (!details.field_violations.empty()) {
    google::rpc::BadRequest bad;
    for (const FieldViolation& violation : details.field_violations) {
      auto* added = bad.add_field_violations();
      added->set_field(violation.field);
      added->set_description(violation.description);
    }
    SetDetail(bad, status);
  }
  if (!details.preconditions.empty()) {
    google::rpc::PreconditionFailure failure;
    for (const PreconditionViolation& violation : details.preconditions) {
      auto* added = failure.add_violations();
      added->set_type(violation.type);
      added->set_subject(violation.subject);
      added->set_description(violation.description);
    }
    SetDetail(failure, status);
  }
  if (!details.quotas.empty()) {
    google::rpc::QuotaFailure failure;
    for (const QuotaViolation& violation : details.quotas) {
      auto* added = failure.add_violations();
      added->set_subject(violation.subject);
      added->set_description(violation.description);
    }
    SetDetail(failure, status);
  }
}

}  // namespace

absl::Status MakeError(Reason reason, std::string_view message,
                       std::map<std::string, std::string> metadata) {
  return MakeDetailedError(reason, message, ErrorDetails{.metadata = std::move(metadata)});
}

absl::Status MakeDetailedError(Reason reason, std::string_view message, ErrorDetails details) {
  const ReasonInfo& info = InfoOf(reason);
  absl::Status status = WithInfo(info.code, info.name, message, details.metadata);
  AddViolations(details, status);
  if (!details.retry_after && reason == Reason::kStoreUnavailable) {
    details.retry_after = kStoreRetryDelay;
  }
  if (details.retry_after) {
    google::rpc::RetryInfo retry;
    *retry.mutable_retry_delay() =
        google::protobuf::util::TimeUtil::MicrosecondsToDuration(details.retry_after->count());
    SetDetail(retry, status);
  }
  return status;
}

absl::Status MakeNamedError(std::string_view reason, std::string_view message,
                            std::map<std::string, std::string> metadata) {
  if (std::optional<Reason> known = FindReason(reason)) {
    return MakeError(*known, message, std::move(metadata));
  }
  if (!IsReasonName(reason)) reason = ReasonName(Reason::kInternal);
  return WithInfo(absl::StatusCode::kInternal, reason, message, metadata);
}

std::string ReasonOf(const absl::Status& status) {
  auto info = GetDetail<google::rpc::ErrorInfo>(status);
  return info ? info->reason() : "";
}

bool HasReason(const absl::Status& status, Reason reason) {
  return ReasonOf(status) == ReasonName(reason);
}

std::string MetadataOf(const absl::Status& status, std::string_view key) {
  auto info = GetDetail<google::rpc::ErrorInfo>(status);
  if (!info) return "";
  auto found = info->metadata().find(std::string(key));
  return found == info->metadata().end() ? "" : found->second;
}

std::optional<Duration> RetryAfterOf(const absl::Status& status) {
  auto retry = GetDetail<google::rpc::RetryInfo>(status);
  if (!retry) return std::nullopt;
  return Duration(google::protobuf::util::TimeUtil::DurationToMicroseconds(retry->retry_delay()));
}

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status result;
  result.set_code(static_cast<int>(status.code()));
  result.set_message(std::string(status.message()));
  status.ForEachPayload([&](absl::string_view type_url, const absl::Cord& value) {
    auto* detail = result.add_details();
    detail->set_type_url(std::string(type_url));
    detail->set_value(std::string(value));
  });
  // ForEachPayload visits in no particular order. The reason comes first: where
  // there is no room for all, the last ones go.
  const std::string first = TypeUrl<google::rpc::ErrorInfo>();
  std::sort(result.mutable_details()->begin(), result.mutable_details()->end(),
            [&](const auto& a, const auto& b) {
              return std::pair(a.type_url() != first, a.type_url()) <
                     std::pair(b.type_url() != first, b.type_url());
            });
  return result;
}

absl::Status FromRpcStatus(const google::rpc::Status& status) {
  absl::Status result(static_cast<absl::StatusCode>(status.code()), status.message());
  for (const google::protobuf::Any& detail : status.details()) {
    result.SetPayload(detail.type_url(), absl::Cord(detail.value()));
  }
  return result;
}

}  // namespace quantry
