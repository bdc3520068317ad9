#include "client/cli/errors.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>

#include "absl/strings/cord.h"
#include "client/cli/format.h"
#include "client/cli/hints.h"
#include "client/cli/text.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

constexpr char kNext[] = "quantry.cli/next";
constexpr std::string_view kMetadata = "quantry.cli/metadata/";

// Whether the message ends with what is wrong with a field, or lists it.
bool Tells(const std::string& message, const std::string& description) {
  return message == description || message.find(": " + description) != std::string::npos ||
         message.find("; " + description) != std::string::npos;
}

// What the violation says beyond the message: all of it, the field's name, or
// nothing ("").
std::string FieldText(const ErrorReport::Violation& violation, const std::string& message) {
  if (!Tells(message, violation.description)) {
    return Cat(Plain(violation.field), ": ", Plain(violation.description));
  }
  const bool named = message.find(violation.field) != std::string::npos;
  return named ? "" : Plain(violation.field);
}

void AddInfo(const google::rpc::ErrorInfo& info, ErrorReport& report) {
  report.reason = info.reason();
  report.metadata.insert(info.metadata().begin(), info.metadata().end());
}

// One detail message into the report; unknown types are skipped.
void AddDetail(const google::protobuf::Any& any, ErrorReport& report) {
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad;
  google::rpc::QuotaFailure quota;
  google::rpc::PreconditionFailure precondition;
  google::rpc::RetryInfo retry;
  if (any.UnpackTo(&info)) {
    AddInfo(info, report);
  } else if (any.UnpackTo(&bad)) {
    for (const auto& v : bad.field_violations()) {
      report.violations.push_back({v.field(), v.description()});
    }
  } else if (any.UnpackTo(&quota)) {
    for (const auto& v : quota.violations()) {
      report.violations.push_back({v.subject(), v.description()});
    }
  } else if (any.UnpackTo(&precondition)) {
    for (const auto& v : precondition.violations()) {
      report.violations.push_back({Cat(v.type(), " ", v.subject()), v.description()});
    }
  } else if (any.UnpackTo(&retry)) {
    report.retry_after_s = static_cast<double>(retry.retry_delay().seconds()) +
                           1e-9 * static_cast<double>(retry.retry_delay().nanos());
  }
}

// Whether nobody knows what became of the call. A store that is unavailable may have
// written; an answer with any other reason is a no.
bool IsUnanswered(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         ReasonOf(status).empty();
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  google::rpc::Status rpc;
  // A server's bytes: anything unreadable only costs the extra lines.
  if (!rpc.ParseFromString(status.error_details())) rpc.Clear();
  rpc.set_code(static_cast<int>(status.error_code()));
  rpc.set_message(status.error_message());
  return FromRpcStatus(rpc);
}

absl::Status WithNext(absl::Status status, std::string_view hint) {
  if (!status.ok()) status.SetPayload(kNext, absl::Cord(std::string(hint)));
  return status;
}

absl::Status WithMetadata(absl::Status status, std::string_view key, std::string_view value) {
  if (!status.ok()) status.SetPayload(Cat(kMetadata, key), absl::Cord(std::string(value)));
  return status;
}

absl::Status NamingRequest(absl::Status status, std::string_view request_id) {
  if (status.ok() || !IsUnanswered(status)) return status;
  const std::string next = Describe(status).next;
  status = WithNext(std::move(status),
                    Cat(next, next.empty() ? "" : "; ", "repeat the command with --request-id ",
                        request_id, ", so that it is not done twice"));
  return WithMetadata(std::move(status), "request_id", request_id);
}

ErrorReport Describe(const google::rpc::Status& status) {
  ErrorReport report;
  const auto code = static_cast<absl::StatusCode>(status.code());
  report.code = absl::StatusCodeToString(code);
  report.message = status.message();
  for (const auto& any : status.details()) AddDetail(any, report);
  if (const auto cause = report.metadata.find("cause"); cause != report.metadata.end()) {
    report.next = HintForCause(cause->second);
  }
  if (report.next.empty()) report.next = HintForMessage(report.message, code);
  if (report.next.empty()) report.next = HintFor(report.reason, code);
  return report;
}

ErrorReport Describe(const absl::Status& status) {
  ErrorReport report = Describe(ToRpcStatus(status));
  if (auto next = status.GetPayload(kNext); next.has_value()) report.next = std::string(*next);
  status.ForEachPayload([&report](absl::string_view type_url, const absl::Cord& value) {
    const std::string name(type_url);
    if (name.rfind(kMetadata, 0) != 0) return;
    report.metadata[name.substr(kMetadata.size())] = std::string(value);
  });
  return report;
}

bool IsBreak(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kDeadlineExceeded:
      return true;
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
      return ReasonOf(status).empty();
    default:
      return false;
  }
}

std::string ErrorText(const ErrorReport& report) {
  std::string text =
      Cat("quantry: ", Plain(report.message.empty() ? report.code : report.message), "\n");
  if (!report.reason.empty()) text += Cat("  reason: ", report.reason, "\n");
  for (const ErrorReport::Violation& v : report.violations) {
    const std::string field = FieldText(v, report.message);
    const std::string line = Cat("  field:  ", field, "\n");
    if (!field.empty() && text.find(line) == std::string::npos) text += line;
  }
  if (report.retry_after_s) text += Cat("  retry:  after ", Seconds(*report.retry_after_s), "\n");
  if (!report.next.empty()) text += Cat("  next:   ", report.next, "\n");
  return text;
}

}  // namespace quantry::cli
