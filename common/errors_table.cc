#include "common/errors.h"

// The table. docs/api/errors.md shows the same rows; errors_test.cc compares.
namespace quantry {
namespace {

using absl::StatusCode;

constexpr ReasonInfo kReasons[] = {
    {Reason::kJobNotFound, "JOB_NOT_FOUND", StatusCode::kNotFound,
     "no such job, or it belongs to another tenant", "check the name; list jobs"},
    {Reason::kJobIdTaken, "JOB_ID_TAKEN", StatusCode::kAlreadyExists, "another job has this id",
     "choose another id, or leave it empty"},
    {Reason::kRequestIdReused, "REQUEST_ID_REUSED", StatusCode::kAlreadyExists,
     "this request_id came before with another payload", "use a new request_id"},
    {Reason::kInvalidArgument, "INVALID_ARGUMENT", StatusCode::kInvalidArgument,
     "a field of the request is wrong", "fix the fields named in BadRequest"},
    {Reason::kInvalidSpec, "INVALID_SPEC", StatusCode::kInvalidArgument, "the job spec cannot work",
     "fix the fields named in BadRequest"},
    {Reason::kInvalidName, "INVALID_NAME", StatusCode::kInvalidArgument,
     "a resource name or id is malformed", "use the form the message shows"},
    {Reason::kInvalidPageToken, "INVALID_PAGE_TOKEN", StatusCode::kInvalidArgument,
     "the page token is not one of ours for this request", "start over without page_token"},
    {Reason::kInvalidFilter, "INVALID_FILTER", StatusCode::kInvalidArgument,
     "the filter expression does not parse", "fix the filter at the position named"},
    {Reason::kEtagMismatch, "ETAG_MISMATCH", StatusCode::kAborted,
     "the job changed since it was read", "read it again, then retry"},
    {Reason::kJobAlreadyEnded, "JOB_ALREADY_ENDED", StatusCode::kFailedPrecondition,
     "the job succeeded or failed before", "nothing to cancel; get the job"},
    {Reason::kJobNotEnded, "JOB_NOT_ENDED", StatusCode::kFailedPrecondition,
     "only ended jobs can be deleted", "cancel it and wait, then delete"},
    {Reason::kJobNotRetryable, "JOB_NOT_RETRYABLE", StatusCode::kFailedPrecondition,
     "only jobs that failed or were cancelled without an artifact can be retried",
     "wait for its end, or submit another job"},
    {Reason::kEventsCompacted, "EVENTS_COMPACTED", StatusCode::kOutOfRange,
     "the history does not reach back to after_sequence", "watch again without after_sequence"},
    {Reason::kSourceForbidden, "SOURCE_FORBIDDEN", StatusCode::kPermissionDenied,
     "the source lies outside the allowed roots or schemes",
     "upload it, or ask the operator for --local-roots"},
    {Reason::kSourceMissing, "SOURCE_MISSING", StatusCode::kFailedPrecondition,
     "a file or blob the spec names does not exist",
     "upload the blobs named in PreconditionFailure, then retry"},
    {Reason::kSourceChanged, "SOURCE_CHANGED", StatusCode::kFailedPrecondition,
     "a file of the model changed while the job read it",
     "leave the model's folder alone, then retry"},
    {Reason::kCheckpointFormatRefused, "CHECKPOINT_FORMAT_REFUSED", StatusCode::kInvalidArgument,
     "pickle, .bin, .pt and code are not read", "convert the checkpoint to safetensors"},
    {Reason::kUnimplementedRpc, "UNIMPLEMENTED_RPC", StatusCode::kUnimplemented,
     "this version does not implement the rpc", "see GetServerInfo.unimplemented"},
    {Reason::kServerDraining, "SERVER_DRAINING", StatusCode::kUnavailable,
     "the server is shutting down", "reconnect; resume a watch with its last sequence"},
    {Reason::kDeadlineExceeded, "DEADLINE_EXCEEDED", StatusCode::kDeadlineExceeded,
     "the call took longer than its deadline", "retry with the same request_id"},
    {Reason::kResourceLimit, "RESOURCE_LIMIT", StatusCode::kResourceExhausted,
     "a limit of the server is reached", "wait for RetryInfo, then retry"},
    {Reason::kQuotaQueued, "QUOTA_QUEUED", StatusCode::kResourceExhausted,
     "the tenant has as many queued jobs as its quota allows",
     "wait for RetryInfo, or cancel queued jobs"},
    {Reason::kQuotaStoredBytes, "QUOTA_STORED_BYTES", StatusCode::kResourceExhausted,
     "the tenant's artifacts and uploads take as many bytes as its quota allows",
     "delete jobs whose artifacts are not needed"},
    {Reason::kQuotaSubmitRate, "QUOTA_SUBMIT_RATE", StatusCode::kResourceExhausted,
     "the tenant submits and retries faster than its quota allows", "wait for RetryInfo"},
    {Reason::kQuotaWatches, "QUOTA_WATCHES", StatusCode::kResourceExhausted,
     "the tenant has as many watches open at this server as its quota allows",
     "end some, or list events instead"},
    {Reason::kPermissionDenied, "PERMISSION_DENIED", StatusCode::kPermissionDenied,
     "the caller may not do this", "use other credentials; do not retry"},
    {Reason::kUnauthenticated, "UNAUTHENTICATED", StatusCode::kUnauthenticated,
     "the caller did not say who it is", "send credentials"},
    {Reason::kBlobMismatch, "BLOB_MISMATCH", StatusCode::kDataLoss,
     "uploaded bytes are not the announced sha256; the upload is discarded",
     "hash the file again, upload from 0"},
    {Reason::kUploadOffset, "UPLOAD_OFFSET", StatusCode::kOutOfRange,
     "write_offset is not where the upload stands", "go on from metadata \"committed\""},
    {Reason::kChunkCorrupt, "CHUNK_CORRUPT", StatusCode::kInvalidArgument,
     "a chunk's crc32c differs from its data", "send it again"},
    {Reason::kArtifactNotFound, "ARTIFACT_NOT_FOUND", StatusCode::kNotFound,
     "no such artifact or file in it", "check the name; list artifacts"},
    {Reason::kArtifactCorrupt, "ARTIFACT_CORRUPT", StatusCode::kDataLoss,
     "stored bytes differ from the manifest", "restore the files or run the job again"},
    {Reason::kLeaseLost, "LEASE_LOST", StatusCode::kFailedPrecondition,
     "the attempt no longer owns the job", "stop the engine, forget the job"},
    {Reason::kUnknownWorker, "UNKNOWN_WORKER", StatusCode::kFailedPrecondition,
     "the server does not know this session", "register again"},
    {Reason::kWorkerNotFound, "WORKER_NOT_FOUND", StatusCode::kNotFound, "no worker with this id",
     "list workers"},
    {Reason::kStoreUnavailable, "STORE_UNAVAILABLE", StatusCode::kUnavailable,
     "the database cannot answer now; a write may have happened",
     "retry after RetryInfo with the same request_id"},
    {Reason::kDiskFull, "DISK_FULL", StatusCode::kResourceExhausted,
     "no space left where the message says", "free space, then retry"},
    {Reason::kDataDirLocked, "DATA_DIR_LOCKED", StatusCode::kFailedPrecondition,
     "another quantryd uses this data folder", "stop the process named, or use another --data-dir"},
    {Reason::kStorageError, "STORAGE_ERROR", StatusCode::kUnavailable,
     "reading or writing files failed", "check the path and the disk, then retry"},
    {Reason::kInvalidConfig, "INVALID_CONFIG", StatusCode::kInvalidArgument,
     "a flag, environment variable or configuration key is wrong", "fix it; see --help"},
    {Reason::kPoisonJob, "POISON_JOB", StatusCode::kAborted,
     "too many workers vanished while running the job",
     "look at the workers' logs; resubmit with smaller resources"},
    {Reason::kNoProgress, "NO_PROGRESS", StatusCode::kDeadlineExceeded,
     "no step was done and no byte fetched, loaded or uploaded for longer than max_no_progress",
     "raise stop_limits.max_no_progress, or report the hang"},
    {Reason::kWorkerLost, "WORKER_LOST", StatusCode::kUnavailable,
     "the worker stopped reporting; the job is queued again", "nothing: it is retried"},
    {Reason::kMaxRunExceeded, "MAX_RUN_EXCEEDED", StatusCode::kDeadlineExceeded,
     "the job ran for longer than max_run", "raise stop_limits.max_run"},
    {Reason::kMaxPendingExceeded, "MAX_PENDING_EXCEEDED", StatusCode::kDeadlineExceeded,
     "no worker took the job within max_pending", "add workers or raise stop_limits.max_pending"},
    {Reason::kEngineCrashed, "ENGINE_CRASHED", StatusCode::kInternal,
     "the engine ended without an answer (signal, out of memory)",
     "see the log tail in the job's events"},
    {Reason::kEngineProtocol, "ENGINE_PROTOCOL", StatusCode::kInternal,
     "the engine wrote something the agent does not understand",
     "use an engine and a worker of the same version"},
    {Reason::kInvalidCheckpoint, "INVALID_CHECKPOINT", StatusCode::kInvalidArgument,
     "the model's files are broken or contradict each other", "fix the file the message names"},
    {Reason::kUnsupportedArchitecture, "UNSUPPORTED_ARCHITECTURE", StatusCode::kInvalidArgument,
     "the engine does not know this model_type", "see GetServerInfo.architectures"},
    {Reason::kInvalidTokenizer, "INVALID_TOKENIZER", StatusCode::kInvalidArgument,
     "tokenizer.json is broken or does not fit the model", "use the model's own tokenizer.json"},
    {Reason::kInvalidCalibration, "INVALID_CALIBRATION", StatusCode::kInvalidArgument,
     "the calibration data is empty, too short or not text",
     "give UTF-8 text, more of it, or fewer or shorter samples"},
    {Reason::kInvalidEvaluation, "INVALID_EVALUATION", StatusCode::kInvalidArgument,
     "the evaluation data is empty, too short or not text",
     "give UTF-8 text, more of it, or shorter windows"},
    {Reason::kNonFiniteWeights, "NON_FINITE_WEIGHTS", StatusCode::kInvalidArgument,
     "a weight of the source is NaN or infinite", "repair the checkpoint"},
    {Reason::kNonFiniteLoss, "NON_FINITE_LOSS", StatusCode::kInternal,
     "the loss of a block became NaN or infinite", "use another seed or milder settings"},
    {Reason::kOutputVerificationFailed, "OUTPUT_VERIFICATION_FAILED", StatusCode::kDataLoss,
     "a written output differs from the engine's integers", "report it; nothing was published"},
    {Reason::kQualityGateFailed, "QUALITY_GATE_FAILED", StatusCode::kFailedPrecondition,
     "the measured quality is worse than the gate allows; the artifact is kept, marked",
     "loosen the gate, or use more bits, smaller groups or another method"},
    {Reason::kOutOfMemory, "OUT_OF_MEMORY", StatusCode::kResourceExhausted,
     "the engine needs more memory than it may use", "use a larger worker or fewer samples"},
    {Reason::kDeviceUnavailable, "DEVICE_UNAVAILABLE", StatusCode::kFailedPrecondition,
     "the device asked for does not exist or does not work", "use device auto or cpu"},
    {Reason::kFileNotFound, "FILE_NOT_FOUND", StatusCode::kNotFound, "a file does not exist",
     "check the path"},
    {Reason::kReadFailed, "READ_FAILED", StatusCode::kUnavailable,
     "the engine could not read a file", "check the worker's disk; it is retried"},
    {Reason::kWriteFailed, "WRITE_FAILED", StatusCode::kUnavailable,
     "the engine could not write a file", "check the worker's disk; it is retried"},
    {Reason::kCheckpointCorrupt, "CHECKPOINT_CORRUPT", StatusCode::kDataLoss,
     "a block checkpoint does not match its hash", "nothing: it is retried"},
    {Reason::kEventsClosed, "EVENTS_CLOSED", StatusCode::kUnavailable,
     "nobody reads the engine's events any more", "nothing: it is retried"},
    {Reason::kInternal, "INTERNAL", StatusCode::kInternal, "a bug of quantry",
     "report it with the message and the logs"},
};

constexpr bool RowsFollowTheEnum() {
  for (size_t i = 0; i < std::size(kReasons); ++i) {
    if (static_cast<size_t>(kReasons[i].reason) != i) return false;
  }
  return std::size(kReasons) == static_cast<size_t>(Reason::kInternal) + 1;
}
static_assert(RowsFollowTheEnum(), "a row a reason, in the enum's order");

}  // namespace

std::span<const ReasonInfo> AllReasons() { return kReasons; }

const ReasonInfo& InfoOf(Reason reason) { return kReasons[static_cast<size_t>(reason)]; }

std::string_view ReasonName(Reason reason) { return InfoOf(reason).name; }

std::optional<Reason> FindReason(std::string_view name) {
  for (const ReasonInfo& info : kReasons) {
    if (info.name == name) return info.reason;
  }
  return std::nullopt;
}

}  // namespace quantry
