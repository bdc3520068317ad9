#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "server/jobs/job.h"

// Where jobs live. Contract of every implementation, tested by
// tests/conformance/job_store_suite.h:
// - Thread-safe. Each call is one transaction and blocks until it is durable
//   (a write that returned OK survives power loss) or has changed nothing.
//   UNAVAILABLE is the exception: a write may then have happened or not, and
//   repeating the call is safe.
// - `now` is the store's clock: the only one that decides about leases.
// - A state change and its event are one transaction; a job's events have
//   sequences 1, 2, 3, ... without gaps.
// - Worker writes name (job, its uid, epoch) of their lease. A stale one gets
//   FAILED_PRECONDITION LEASE_LOST and changes nothing. An unknown session
//   gets FAILED_PRECONDITION UNKNOWN_WORKER.
// - Any call: UNAVAILABLE STORE_UNAVAILABLE, RESOURCE_EXHAUSTED DISK_FULL.
namespace quantry::server {

struct SubmitRequest {
  JobKey key;
  std::string uid;           // new UUID
  std::string request_id;    // "" = not idempotent
  std::string request_hash;  // of the whole request's payload
  std::string display_name;
  std::map<std::string, std::string> labels;
  v1::JobSpec spec;
  std::string spec_digest;
  int priority = 0;
  std::optional<Time> expire_time;
  std::string traceparent = {};  // W3C; "" = none
  // Take the result of a job of the tenant with the same spec_digest and
  // engine_version ("" = not known: none has it).
  bool reuse_result = false;
  std::string engine_version = {};
  // What the tenant's uploads take, for max_stored_bytes.
  int64_t upload_bytes = 0;
  // Only the job of an earlier call with this request_id; without one NOT_FOUND JOB_NOT_FOUND.
  bool repeat_only = false;
};

// What became of reuse_result.
enum class Reuse {
  kNotAsked,
  kMiss,    // no such job: runs as usual
  kJoined,  // waits for one that is queued or running
  kHit,     // SUCCEEDED at once
};

struct SubmitResult {
  Job job;
  bool created = false;  // false: an earlier call with this request_id made it
  Reuse reuse = Reuse::kNotAsked;
};

struct ListQuery {
  std::string tenant;
  std::vector<JobState> states;               // any of; empty = all
  std::map<std::string, std::string> labels;  // all of
  std::string method;                         // "" = all
  int limit = 50;
  // Fewer jobs, but one, where their specs are larger in all.
  int64_t max_spec_bytes = int64_t{1} << 20;
  std::optional<Cursor> after;  // last job of the page before
};

// Newest first.
struct JobPage {
  std::vector<Job> jobs;
  std::optional<Cursor> next;  // absent = no more
};

struct UpdateRequest {
  JobKey key;
  std::string etag;  // "" = any
  std::optional<std::map<std::string, std::string>> labels;
  std::optional<int> priority;
  // Outer: whether to change it; inner: absent = never expires.
  std::optional<std::optional<Time>> expire_time;
};

struct CancelRequest {
  JobKey key;
  std::string etag;  // "" = any
  std::string reason;
};

struct RetryRequest {
  JobKey key;
  std::string request_id = {};  // "" = not idempotent
  std::string etag = {};        // "" = any
  bool from_start = false;      // forget the committed checkpoint
  // Only the job that an earlier call with this request_id retried; else NOT_FOUND JOB_NOT_FOUND.
  bool repeat_only = false;
};

struct DeleteRequest {
  JobKey key;
  std::string etag;  // "" = any
};

struct AcquireRequest {
  std::string session;
  std::string acquire_id;  // UUID; repeating it returns the same lease
};

// Names the attempt a worker writes for.
struct LeaseToken {
  std::string session;
  JobKey job;
  int64_t epoch = 0;
  // Of the job leased: a name may be used again, and its epochs begin at 1 then.
  // "" = not compared.
  std::string uid = {};
};

// Events of an attempt, numbered by the worker from 0: `events[i]` has number
// offset + i. The store keeps those it does not have yet; sequence, time and
// epoch are the store's. state_changed is the server's own: it has a number, as
// an event of no known kind has, and is not kept.
struct AttemptEvents {
  int64_t offset = 0;
  std::vector<v1::JobEvent> events;
};

struct Beat {
  JobKey job;
  int64_t epoch = 0;
  v1::JobProgress progress;
  AttemptEvents events;
  std::string uid = {};  // as in LeaseToken
};

// One heartbeat of a worker.
struct WorkerBeat {
  std::string session;
  std::vector<Beat> jobs = {};
  // Why the worker takes no new jobs for now; "" = it does.
  std::string refusal = {};
};

struct BeatReply {
  JobKey job;
  int64_t epoch = 0;
  v1::Directive directive = v1::DIRECTIVE_CONTINUE;
  Duration ttl{};
  int64_t next_event_offset = 0;  // send from here
  std::string uid = {};           // the beat's
};

struct HeartbeatReply {
  std::vector<BeatReply> jobs;  // in the order of the beats
  v1::WorkerDirective worker = v1::WORKER_DIRECTIVE_NONE;
  std::string worker_id = {};  // whose session it is
};

struct CheckpointRequest {
  LeaseToken lease;
  v1::CheckpointRef checkpoint;
  AttemptEvents events;  // what happened before the checkpoint
};

struct CompleteRequest {
  LeaseToken lease;
  std::string manifest_sha256;
  int64_t total_bytes = 0;
  int file_count = 0;
  std::string artifact_uri;
  v1::JobResult result;
  AttemptEvents events;
};

struct FailRequest {
  LeaseToken lease;
  v1::EngineError error;
  bool retryable = false;  // another attempt may end differently
  int exit_code = 0;
  int exit_signal = 0;
  std::string log_tail;
  bool cancelled = false;  // the engine was stopped because of a cancel
  AttemptEvents events;
};

struct EventBatch {
  std::string uid;  // of the job, whose name may have been another one's before
  std::vector<v1::JobEvent> events;
  JobState state = JobState::kQueued;  // in the same snapshot
  int64_t last_sequence = 0;           // of the job, not of the batch
};

struct ArtifactPage {
  std::vector<Artifact> artifacts;  // newest first
  std::optional<Cursor> next;
};

// What a sweep did.
struct SweepReport {
  bool left_to_another = false;  // another server of the same database sweeps right now
  bool pushed_leases = false;    // the sweeper had stood still; nobody was judged
  int lost = 0;                  // leases that lapsed
  int no_progress = 0;
  int max_run = 0;              // attempts that ran longer than they may
  int max_pending = 0;          // jobs that waited longer than they may
  int waiting = 0;              // queued jobs whose reason to wait is another than before
  std::vector<JobKey> removed;  // ended jobs, at their expire_time
  std::vector<JobKey> changed;  // those, too
};

// What one tenant may use; 0 = no limit.
struct TenantQuota {
  std::string tenant;
  int64_t max_queued = 0;
  int64_t max_running = 0;
  int64_t max_stored_bytes = 0;        // artifacts and uploads
  int64_t max_submits_per_minute = 0;  // and retries
  int64_t max_watches = 0;             // open at one server
};

struct TenantUsage {
  TenantQuota quota;
  int64_t queued = 0;
  int64_t running = 0;  // RUNNING and CANCELLING
  int64_t artifact_bytes = 0;
};

// Nobody is given new jobs until the queue is resumed.
struct QueuePause {
  std::string reason;
  Time since;
};

// From maintained counters; only the jobs of tenants with a max_running are counted.
struct StoreStats {
  std::map<JobState, int64_t> jobs;  // all six states
  int64_t depth = 0;                 // claimable now
  int64_t delayed = 0;               // queued, waiting for their backoff
  int64_t held = 0;                  // queued and ready, above their tenant's max_running
  std::optional<Time> oldest_queued;
  int known_workers = 0;
  int live_workers = 0;
  int busy_slots = 0;
  int total_slots = 0;  // of live workers
  std::optional<QueuePause> pause;
  // Of a store that keeps old versions of rows until vacuum (PostgreSQL), else 0: those of
  // the queue, and how many transactions began since the oldest snapshot somebody holds,
  // behind which vacuum cannot go.
  int64_t dead_rows = 0;
  int64_t oldest_snapshot_age = 0;
};

// What a job needs of the stores, for the collection of garbage.
struct JobReferences {
  std::string tenant;
  std::string uid;
  std::set<int64_t> outputs;       // epochs whose output prefix is needed
  std::set<int64_t> checkpoints;   // epochs whose checkpoints are
  std::vector<std::string> blobs;  // sha256 of the uploads its spec names
};

// Bytes nothing refers to any more: everything below {root}/{tenant}/{uid}/.
struct Garbage {
  std::string tenant;
  std::string job_uid;
};

// Told about jobs that a call changed beside the one it names, once that is
// durable, on the caller's thread. May be told of one that did not change.
using ChangeObserver = std::function<void(const JobKey& job)>;

class JobStore {
 public:
  virtual ~JobStore() = default;

  // Tenant side ------------------------------------------------------------
  // Errors: ALREADY_EXISTS JOB_ID_TAKEN, REQUEST_ID_REUSED (same request_id,
  // other request_hash); RESOURCE_EXHAUSTED QUOTA_QUEUED, QUOTA_STORED_BYTES,
  // QUOTA_SUBMIT_RATE.
  //
  // With reuse_result, a job of the tenant with the same digest and engine
  // version that SUCCEEDED makes the new one SUCCEEDED with the same artifact.
  // While there is only one that is QUEUED or RUNNING, the new job is QUEUED,
  // claimable by nobody, until that one ends: it takes an artifact of its engine
  // version, and runs itself otherwise (of several that wait the first one runs,
  // and the others wait for it).
  virtual absl::StatusOr<SubmitResult> Submit(const SubmitRequest& request, Time now) = 0;
  // Errors here and below: NOT_FOUND JOB_NOT_FOUND.
  virtual absl::StatusOr<Job> Get(const JobKey& key) = 0;
  virtual absl::StatusOr<JobPage> List(const ListQuery& query) = 0;
  // Errors: ABORTED ETAG_MISMATCH.
  virtual absl::StatusOr<Job> Update(const UpdateRequest& request, Time now) = 0;
  // QUEUED -> CANCELLED, RUNNING -> CANCELLING. Again: no change, OK. Once it
  // returned OK the job never becomes SUCCEEDED. Errors: ABORTED
  // ETAG_MISMATCH, FAILED_PRECONDITION JOB_ALREADY_ENDED.
  virtual absl::StatusOr<Job> Cancel(const CancelRequest& request, Time now) = 0;
  // FAILED or CANCELLED -> QUEUED, to resume from the last committed checkpoint.
  // Failures and losses count from zero again; epoch, events and place in the
  // queue stay. The request_id of any of its retries again: no change, OK.
  // Errors: ABORTED ETAG_MISMATCH, FAILED_PRECONDITION JOB_NOT_RETRYABLE,
  // RESOURCE_EXHAUSTED QUOTA_QUEUED, QUOTA_SUBMIT_RATE.
  virtual absl::StatusOr<Job> Retry(const RetryRequest& request, Time now) = 0;
  // Removes job, events and artifact row; the bytes become Garbage. An artifact
  // that other jobs share stays and belongs to one of them. Returns the job as
  // it was. Errors: ABORTED ETAG_MISMATCH, FAILED_PRECONDITION
  // JOB_NOT_ENDED.
  virtual absl::StatusOr<Job> Delete(const DeleteRequest& request, Time now) = 0;
  // Zeros where the tenant has no limit.
  virtual absl::StatusOr<TenantQuota> Quota(const std::string& tenant) = 0;
  // Of all the tenant's artifacts.
  virtual absl::StatusOr<int64_t> ArtifactBytes(const std::string& tenant) = 0;
  // Events with a sequence greater than `after`, oldest first.
  virtual absl::StatusOr<EventBatch> Events(const JobKey& key, int64_t after, int limit) = 0;
  // Errors: NOT_FOUND ARTIFACT_NOT_FOUND.
  virtual absl::StatusOr<Artifact> GetArtifact(const std::string& tenant,
                                               const std::string& uid) = 0;
  virtual absl::StatusOr<ArtifactPage> ListArtifacts(const std::string& tenant, int limit,
                                                     std::optional<Cursor> after) = 0;

  // Worker side ------------------------------------------------------------
  // `session` is a new random name for this registration; it replaces the
  // worker's earlier one. Another incarnation means that the process died:
  // its leases lapse at once, so many as are returned, and a drain is forgotten.
  virtual absl::StatusOr<int> RegisterWorker(const v1::WorkerInfo& worker,
                                             const std::string& session, Time now) = 0;
  // nullopt = nothing to do (or the worker drains, or the queue is paused).
  // Tenants take turns: the job is of the tenant that runs fewest (RUNNING or
  // CANCELLING), of those with equally many of the one whose last claim is
  // oldest, then by name; inside a tenant by rank (RankOf in rules.h). Claims at
  // the same time may judge by the same state. Tenants that run max_running are
  // passed over.
  virtual absl::StatusOr<std::optional<Grant>> Acquire(const AcquireRequest& request, Time now) = 0;
  virtual absl::StatusOr<HeartbeatReply> Heartbeat(const WorkerBeat& beat, Time now) = 0;
  // What the next attempt resumes from; ends a row of losses. The same again: OK, no event.
  virtual absl::Status CommitCheckpoint(const CheckpointRequest& request, Time now) = 0;
  // The commit point. Same epoch and digest again: OK. A job that was told to
  // cancel becomes CANCELLED and the caller gets LEASE_LOST. A result whose
  // quality gate failed ends FAILED QUALITY_GATE_FAILED with its artifact.
  virtual absl::Status Complete(const CompleteRequest& request, Time now) = 0;
  // Returns where the job went: QUEUED (retry), FAILED or CANCELLED. Counts
  // against max_attempts; FAILED at once when not retryable.
  virtual absl::StatusOr<JobState> Fail(const FailRequest& request, Time now) = 0;
  // Back to QUEUED at no cost; CANCELLING -> CANCELLED.
  virtual absl::Status Release(const LeaseToken& lease, const std::string& reason, Time now) = 0;

  // Operator side ----------------------------------------------------------
  // By id; those with a greater one than `after`.
  virtual absl::StatusOr<std::vector<Worker>> ListWorkers(const std::string& after, int limit,
                                                          Time now) = 0;
  // Errors: NOT_FOUND WORKER_NOT_FOUND.
  virtual absl::StatusOr<Worker> DrainWorker(const std::string& worker_id, bool terminate,
                                             Time now) = 0;
  // From now on Acquire gives no new jobs; what runs goes on. Survives a
  // restart. Again: another reason, the same time.
  virtual absl::Status PauseQueue(const std::string& reason, Time now) = 0;
  virtual absl::Status ResumeQueue() = 0;
  // The tenant's quota, and what it uses of it now. Reads all its queued jobs.
  virtual absl::StatusOr<TenantUsage> Usage(const std::string& tenant) = 0;
  // From now on; jobs queued or running above it stay.
  virtual absl::StatusOr<TenantUsage> SetQuota(const TenantQuota& quota) = 0;
  // Judges leases, limits and expiry; forgets workers that are gone. Not called for
  // more than ttl / 2, it pushes all leases to now + ttl and judges nobody. When now
  // is before the last sweep's, leases, attempts and backoffs go back with it; a
  // caller whose now is another for some seconds loses no lease. Says in
  // state_reason and a log event, once a minute at most, why a queued job waits when
  // no live worker would take it.
  virtual absl::StatusOr<SweepReport> Sweep(Time now) = 0;
  virtual absl::StatusOr<StoreStats> Stats(Time now) = 0;
  // Oldest first.
  virtual absl::StatusOr<std::vector<Garbage>> ListGarbage(int limit) = 0;
  // Call after the bytes are gone.
  virtual absl::Status ForgetGarbage(const Garbage& garbage) = 0;
  // By uid; jobs with a greater one than `after`.
  virtual absl::StatusOr<std::vector<JobReferences>> ListReferences(const std::string& after,
                                                                    int limit) = 0;
  // Reads one row: for readiness.
  virtual absl::Status Ping() = 0;
};

}  // namespace quantry::server
