#include "worker/agent/failure.h"

#include "common/engine_error.h"
#include "common/errors.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "worker/agent/utf8.h"

namespace quantry::agent {
namespace {

// What a status without a reason of its own stands for.
Reason ReasonFor(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return Reason::kInvalidSpec;
    case absl::StatusCode::kNotFound:
      return Reason::kSourceMissing;
    case absl::StatusCode::kResourceExhausted:
      return Reason::kDiskFull;
    case absl::StatusCode::kDataLoss:
      return Reason::kArtifactCorrupt;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return Reason::kStorageError;
    default:
      return Reason::kInternal;
  }
}

v1::FailureClass ClassOf(Reason reason) {
  switch (reason) {
    case Reason::kInvalidArgument:
    case Reason::kInvalidSpec:
    case Reason::kSourceForbidden:
    case Reason::kSourceMissing:
    case Reason::kCheckpointFormatRefused:
      return v1::FAILURE_CLASS_USER;
    case Reason::kDiskFull:
    case Reason::kStorageError:
    case Reason::kStoreUnavailable:
    case Reason::kArtifactCorrupt:
    case Reason::kBlobMismatch:
    case Reason::kFileNotFound:
      return v1::FAILURE_CLASS_ENVIRONMENT;
    case Reason::kOutOfMemory:
    case Reason::kDeviceUnavailable:
      return v1::FAILURE_CLASS_RESOURCE;
    default:
      return v1::FAILURE_CLASS_BUG;
  }
}

}  // namespace

v1::EngineError ToEngineError(const absl::Status& status) {
  const Reason reason = FindReason(ReasonOf(status)).value_or(ReasonFor(status.code()));
  v1::EngineError error;
  error.set_failure_class(ClassOf(reason));
  error.set_reason(std::string(ReasonName(reason)));
  error.set_message(std::string(status.message()));
  const google::rpc::Status rpc_status = ToRpcStatus(status);
  for (const auto& detail : rpc_status.details()) {
    google::rpc::ErrorInfo info;
    if (detail.UnpackTo(&info)) *error.mutable_metadata() = info.metadata();
  }
  return error;
}

std::string BoundedLogTail(const std::string& text) {
  if (text.size() <= kMaxLogTailBytes) return text;
  // The first character may have lost its beginning.
  return ToValidUtf8(std::string_view(text).substr(text.size() - kMaxLogTailBytes));
}

bool IsRetryable(const v1::EngineError& error) {
  return error.failure_class() == v1::FAILURE_CLASS_ENVIRONMENT ||
         error.failure_class() == v1::FAILURE_CLASS_RESOURCE ||
         error.reason() == ReasonName(Reason::kEngineCrashed) ||
         error.reason() == ReasonName(Reason::kEngineProtocol);
}

}  // namespace quantry::agent
