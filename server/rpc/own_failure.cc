#include "server/rpc/own_failure.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/log.h"

namespace quantry::server {
namespace {

// Whether a request, or its caller, is to blame: these say what was wanted of it.
bool IsOfRequest(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

}  // namespace

absl::Status WithoutPlaces(std::string_view what, const absl::Status& status) {
  if (IsOfRequest(status.code())) return status;
  const Reason reason = FindReason(ReasonOf(status)).value_or(Reason::kInternal);
  const std::string name(ReasonName(reason));
  log::Warning(absl::StrCat("cannot ", std::string(what)),
               {{"reason", name}, {"error", std::string(status.message())}});
  return MakeDetailedError(
      reason,
      absl::StrCat("the server cannot ", std::string(what), " (", name,
                   "): the cause lies with it and stands in its log; try again later, or tell "
                   "its operator"),
      {.retry_after = RetryAfterOf(status)});
}

}  // namespace quantry::server
