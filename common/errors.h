#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"

namespace google::rpc {
class Status;
}

// Every error quantry can answer, in one table (errors_table.cc; the same rows
// are documented in docs/api/errors.md, which a test compares). An error is an
// absl::Status whose code, message and payloads carry the google.rpc details
// of AIP-193; the rpc layer only serialises ToRpcStatus() into the
// grpc-status-details-bin trailer. All functions are pure and thread-safe.
namespace quantry {

enum class Reason {
  // Jobs and the tenant API.
  kJobNotFound,
  kJobIdTaken,
  kRequestIdReused,
  kInvalidArgument,
  kInvalidSpec,
  kInvalidName,
  kInvalidPageToken,
  kInvalidFilter,
  kEtagMismatch,
  kJobAlreadyEnded,
  kJobNotEnded,
  kJobNotRetryable,
  kEventsCompacted,
  kSourceForbidden,
  kSourceMissing,
  kSourceChanged,
  kCheckpointFormatRefused,
  kUnimplementedRpc,
  kServerDraining,
  kDeadlineExceeded,
  kResourceLimit,
  kQuotaQueued,
  kQuotaStoredBytes,
  kQuotaSubmitRate,
  kQuotaWatches,
  kPermissionDenied,
  kUnauthenticated,
  // Bytes.
  kBlobMismatch,
  kUploadOffset,
  kChunkCorrupt,
  kArtifactNotFound,
  kArtifactCorrupt,
  // Workers.
  kLeaseLost,
  kUnknownWorker,
  kWorkerNotFound,
  // The server and its store.
  kStoreUnavailable,
  kDiskFull,
  kDataDirLocked,
  kStorageError,
  kInvalidConfig,
  // How a job fails.
  kPoisonJob,
  kNoProgress,
  kWorkerLost,
  kMaxRunExceeded,
  kMaxPendingExceeded,
  kEngineCrashed,
  kEngineProtocol,
  // The engine's own.
  kInvalidCheckpoint,
  kUnsupportedArchitecture,
  kInvalidTokenizer,
  kInvalidCalibration,
  kInvalidEvaluation,
  kNonFiniteWeights,
  kNonFiniteLoss,
  kOutputVerificationFailed,
  kQualityGateFailed,
  kOutOfMemory,
  kDeviceUnavailable,
  kFileNotFound,
  kReadFailed,
  kWriteFailed,
  kCheckpointCorrupt,
  kEventsClosed,
  kInternal,
};

struct ReasonInfo {
  Reason reason;
  std::string_view name;  // "JOB_NOT_FOUND", at most 63 characters
  absl::StatusCode code;
  std::string_view meaning;
  std::string_view action;  // what a client should do
};

// All rows, in the order of the enum.
std::span<const ReasonInfo> AllReasons();
const ReasonInfo& InfoOf(Reason reason);
std::string_view ReasonName(Reason reason);
std::optional<Reason> FindReason(std::string_view name);

struct FieldViolation {
  std::string field;  // path in the request: "quantization_job.spec.seed"
  std::string description;
};

struct PreconditionViolation {
  std::string type;     // "MISSING"
  std::string subject;  // a blob's sha256, a path
  std::string description;
};

struct QuotaViolation {
  std::string subject;  // "tenants/acme"
  std::string description;
};

struct ErrorDetails {
  // Every value in the message, cut at 1000 bytes each.
  std::map<std::string, std::string> metadata = {};
  std::vector<FieldViolation> field_violations = {};
  std::vector<PreconditionViolation> preconditions = {};
  std::vector<QuotaViolation> quotas = {};
  std::optional<Duration> retry_after = {};
};

// The code comes from the table. `message` says what was wanted, what was got
// and what to do next. STORE_UNAVAILABLE gets a RetryInfo of 1 s by itself.
absl::Status MakeError(Reason reason, std::string_view message,
                       std::map<std::string, std::string> metadata = {});
absl::Status MakeDetailedError(Reason reason, std::string_view message, ErrorDetails details);

// For reasons that come as text (from an engine): a reason outside the table
// keeps its name and gets INTERNAL. A malformed name becomes INTERNAL's own.
absl::Status MakeNamedError(std::string_view reason, std::string_view message,
                            std::map<std::string, std::string> metadata = {});

// The reason in ErrorInfo, "" without one.
std::string ReasonOf(const absl::Status& status);
bool HasReason(const absl::Status& status, Reason reason);
// One metadata value of ErrorInfo, "" without it.
std::string MetadataOf(const absl::Status& status, std::string_view key);
std::optional<Duration> RetryAfterOf(const absl::Status& status);

// Both directions keep code, message and every detail (unknown types too).
google::rpc::Status ToRpcStatus(const absl::Status& status);
absl::Status FromRpcStatus(const google::rpc::Status& status);

}  // namespace quantry
