#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/jobs/job_store.h"
#include "server/jobs/policy.h"
#include "server/jobs/records.h"

// What every store decides and says alike. Pure functions: the stores differ
// only in how they keep rows.
namespace quantry::server {

// Jobs and their queue rows ----------------------------------------------------

// Inside a tenant claims go by rank, smallest first: the time of creation, moved
// back by one `aging` for each level of priority.
int64_t RankOf(const JobPolicy& policy, Time create_time, int priority);
// A job that names a CUDA device needs a GPU though it did not say how many.
int GpuCount(const v1::ResourceRequest& resources);
// nullopt = no limit.
std::optional<Duration> LimitOf(const google::protobuf::Duration& limit);
// sha256 of every upload the spec names.
std::vector<std::string> BlobsOf(const v1::JobSpec& spec);

absl::Status JobNotFound(const JobKey& key);
absl::Status JobIdTaken(const JobKey& key);
absl::Status RequestIdReused(const std::string& request_id);
absl::Status JobAlreadyEnded(const Job& job);
absl::Status JobNotEnded(const Job& job);
absl::Status ArtifactNotFound(const std::string& tenant, const std::string& uid);
absl::Status QueuedQuotaReached(const std::string& tenant, int64_t limit);
// RESOURCE_EXHAUSTED QUOTA_STORED_BYTES when `stored` leaves no room for `more`
// bytes (0: for anything at all).
absl::Status CheckStoredBytes(const TenantQuota& quota, int64_t stored, int64_t more);
// Takes one submit from the tenant's bucket, which holds a minute's worth and
// fills evenly. `full_at`: when it would have been full; the result: when it
// will be now. RESOURCE_EXHAUSTED QUOTA_SUBMIT_RATE with the time to wait.
absl::StatusOr<Time> TakeSubmit(const TenantQuota& quota, Time full_at, Time now);
// OK or ETAG_MISMATCH. "" = any.
absl::Status CheckEtag(const Job& job, const std::string& etag);
// Of the request ids of a job's retries, a thousand UUIDs on lines of their own: each
// retry reads and writes them all, in the row that changes with the job's state.
inline constexpr size_t kMaxRetryIdBytes = size_t{1000} * 37;
// OK or JOB_NOT_RETRYABLE. `retry_ids`: those of its retries so far, one a line.
absl::Status CheckRetryable(const Job& job, std::string_view retry_ids);
// Where a cancel leads from the job's state; nullopt = nothing to do.
// Errors: JOB_ALREADY_ENDED.
absl::StatusOr<std::optional<JobState>> CancelTarget(const Job& job);

// Errors: INTERNAL for a transition outside the table.
absl::Status CheckTransition(const StateChange& change);
v1::JobEvent EventOf(const StateChange& change);
// Of the server, for the job's owner.
v1::JobEvent InfoEvent(const std::string& message);
// Why a job ended that shares another one's result.
std::string SharesResultOf(const JobKey& source);
v1::JobEvent EventOf(const v1::CheckpointRef& checkpoint);

// Leases -----------------------------------------------------------------------

absl::Status UnknownWorker();
absl::Status WorkerNotFound(const std::string& worker_id);
absl::Status LeaseLost(const JobKey& key, int64_t epoch, const std::string& why);
// OK when `row` is the attempt's, held by this worker; else LEASE_LOST.
absl::Status CheckLeaseRow(const LeaseToken& lease, const QueueRow& row,
                           const std::string& worker_id);

// Whether an attempt is at a stage whose steps are bytes: a model that takes an
// hour to fetch is no hang.
bool MovesFiles(const v1::JobProgress& progress);
// Whether it fetched, loaded or uploaded any between two beats.
bool BytesMoved(const v1::JobProgress& before, const v1::JobProgress& now);

v1::Directive DirectiveFor(const QueueRow& row, const WorkerRow& worker);
v1::WorkerDirective DirectiveFor(const WorkerRow& worker);
Worker WorkerOf(const WorkerRow& row, const JobPolicy& policy, Time now);

// Events a worker may write into the history.
bool IsWorkersOwn(const v1::JobEvent& event);
// Those of `events` the store does not have yet; `known` = how many it has. A
// negative offset and a hole give none: the worker sends again from `known`.
std::vector<v1::JobEvent> NewEvents(int64_t known, const AttemptEvents& events);
// The end of an engine's log as an event, cut at a character.
v1::JobEvent LogTailEvent(const std::string& log);

// How attempts end ---------------------------------------------------------------

absl::Status ErrorOf(const FailRequest& request);
absl::Status GateFailed(const v1::QualityGate& gate, const v1::Perplexity& measured);
absl::Status WorkerLost(const QueueRow& row, const std::string& why);
// Whether losing a worker so often ends the job.
bool IsPoison(const JobPolicy& policy, int64_t distinct_workers, int losses);
absl::Status Poisoned(const QueueRow& row, int64_t distinct_workers, int losses);
absl::Status MaxPendingExceeded(const QueueRow& row);
absl::Status MaxRunExceeded(const QueueRow& row);
absl::Status NoProgress(const QueueRow& row);

// What is wrong with a leased row.
enum class Verdict { kFine, kLapsed, kCancelIgnored, kMaxRun, kNoProgress };
Verdict JudgeLease(const QueueRow& row, const JobPolicy& policy, Time now);

}  // namespace quantry::server
