#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "google/rpc/status.pb.h"
#include "quantry/v1/job.pb.h"
#include "quantry/v1/worker_service.pb.h"

// The job as server/jobs knows it: plain values, copyable, no locks.
//
// What the server decides about (names, state, counters, times) has its own
// types here. What it only stores and hands on (spec, progress, events,
// result, error) stays the generated message: the store keeps those as bytes
// and a mirrored set of structs would only add two conversions. Reason:
// docs/decisions/2026-11-25-domain-uses-proto-payloads.md. rpc/convert.cc
// validates a spec before it gets here.
namespace quantry::server {

// Values equal v1::JobState (job.cc asserts it) and are stored in databases.
enum class JobState : int {
  kQueued = 1,
  kRunning = 2,
  kCancelling = 3,
  kSucceeded = 4,
  kFailed = 5,
  kCancelled = 6,
};

inline constexpr JobState kAllJobStates[] = {JobState::kQueued,     JobState::kRunning,
                                             JobState::kCancelling, JobState::kSucceeded,
                                             JobState::kFailed,     JobState::kCancelled};

bool IsEnded(JobState state);
// A worker may hold a lease in this state.
bool IsLeased(JobState state);
std::string_view JobStateName(JobState state);  // "QUEUED"
v1::JobState ToProto(JobState state);
// nullopt for UNSPECIFIED and unknown values.
std::optional<JobState> FromProto(v1::JobState state);

// Names a job inside the store.
struct JobKey {
  std::string tenant;
  std::string id;
  bool operator==(const JobKey&) const = default;
  auto operator<=>(const JobKey&) const = default;  // NOLINT(modernize-use-nullptr): false alarm
};

struct Job {
  JobKey key;
  std::string uid;  // UUID, never used again; also the artifact's uid
  std::string display_name;
  std::map<std::string, std::string> labels;
  v1::JobSpec spec;         // defaults filled in
  std::string spec_digest;  // sha256 hex over the canonical spec
  std::string traceparent;  // W3C, of the call that submitted it; "" = none
  int priority = 0;
  JobState state = JobState::kQueued;
  std::string state_reason;
  v1::JobProgress progress;   // of the running or last attempt
  int64_t epoch = 0;          // claims so far
  std::string worker;         // of the running or last attempt
  google::rpc::Status error;  // FAILED; code 0 otherwise
  bool has_artifact = false;
  std::string artifact_uid;  // of its artifact: its own, or of the job that made it; "" = none
  std::string result_of;     // id of the job whose artifact it shares; "" = none
  std::optional<v1::JobResult> result;
  // Grows with each change of state or of a mutable field, not with progress.
  int64_t version = 1;
  int64_t last_sequence = 0;
  int user_failures = 0;  // attempts that failed since submit or retry
  int worker_losses = 0;  // attempts whose worker vanished since then
  Time create_time;
  Time update_time;
  std::optional<Time> start_time;  // first claim
  std::optional<Time> end_time;
  std::optional<Time> expire_time;
};

// RFC 7232 form of the beginning of the uid, as a name may be used again, and
// the version: "\"0c1f3a52-7\"".
std::string EtagOf(const Job& job);

// The set oneof field of a method: "awq"; "" when none is set.
std::string MethodName(const v1::Method& method);

// A position in a list ordered by (create_time, uid) descending.
struct Cursor {
  Time create_time;
  std::string uid;
  bool operator==(const Cursor&) const = default;
};

// What one attempt holds. Liveness only: writes are guarded by `epoch`.
struct Grant {
  Job job;  // state RUNNING (or CANCELLING), epoch = the attempt's
  Duration ttl{};
  std::optional<v1::CheckpointRef> resume;
};

struct Artifact {
  JobKey job;
  std::string uid;  // = the job's
  std::string uri;  // prefix that holds the files
  std::string manifest_sha256;
  int64_t total_bytes = 0;
  int file_count = 0;
  int64_t epoch = 0;
  Time create_time;
};

struct Worker {
  v1::WorkerInfo info;
  std::string session;
  Time last_seen;
  std::vector<JobKey> jobs;  // leased now
  bool draining = false;
  bool terminate = false;
  bool live = false;    // seen within one lease ttl
  std::string refusal;  // why it takes no new jobs, in its words; "" = it does
};

}  // namespace quantry::server
