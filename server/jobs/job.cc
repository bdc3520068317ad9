#include "server/jobs/job.h"

namespace quantry::server {

static_assert(static_cast<int>(JobState::kQueued) == v1::JOB_STATE_QUEUED);
static_assert(static_cast<int>(JobState::kRunning) == v1::JOB_STATE_RUNNING);
static_assert(static_cast<int>(JobState::kCancelling) == v1::JOB_STATE_CANCELLING);
static_assert(static_cast<int>(JobState::kSucceeded) == v1::JOB_STATE_SUCCEEDED);
static_assert(static_cast<int>(JobState::kFailed) == v1::JOB_STATE_FAILED);
static_assert(static_cast<int>(JobState::kCancelled) == v1::JOB_STATE_CANCELLED);

bool IsEnded(JobState state) {
  return state == JobState::kSucceeded || state == JobState::kFailed ||
         state == JobState::kCancelled;
}

bool IsLeased(JobState state) {
  return state == JobState::kRunning || state == JobState::kCancelling;
}

std::string_view JobStateName(JobState state) {
  switch (state) {
    case JobState::kQueued:
      return "QUEUED";
    case JobState::kRunning:
      return "RUNNING";
    case JobState::kCancelling:
      return "CANCELLING";
    case JobState::kSucceeded:
      return "SUCCEEDED";
    case JobState::kFailed:
      return "FAILED";
    case JobState::kCancelled:
      return "CANCELLED";
  }
  return "";
}

v1::JobState ToProto(JobState state) { return static_cast<v1::JobState>(state); }

std::optional<JobState> FromProto(v1::JobState state) {
  if (state == v1::JOB_STATE_UNSPECIFIED || !v1::JobState_IsValid(state)) return std::nullopt;
  return static_cast<JobState>(state);
}

std::string EtagOf(const Job& job) {
  constexpr size_t kUidDigits = 8;
  return "\"" + job.uid.substr(0, kUidDigits) + "-" + std::to_string(job.version) + "\"";
}

std::string MethodName(const v1::Method& method) {
  const auto* field = v1::Method::descriptor()->FindFieldByNumber(method.kind_case());
  return field == nullptr ? "" : field->name();
}

}  // namespace quantry::server
