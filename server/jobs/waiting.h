#pragma once

#include <span>
#include <string>

#include "server/jobs/job.h"
#include "server/jobs/job_store.h"
#include "server/jobs/policy.h"

// Why a queued job waits, in words for its owner. Pure.
namespace quantry::server {

// What a claim looks at.
struct JobNeeds {
  std::string method;
  int gpu_count = 0;
  int64_t min_gpu_memory_bytes = 0;  // on each GPU
  int64_t host_memory_bytes = 0;     // 0 = not said
};

// Why `worker` does not take the job, without its name; "" = it will.
std::string WhyNot(const JobNeeds& needs, const Worker& worker);

// "" while some live worker takes the job when its turn comes, else
// "waiting: " and what they have against it, at most three reasons. The same for
// any workers with the same reasons.
std::string WhyWaiting(const JobNeeds& needs, std::span<const Worker> live);

// "waiting: " and that the queue is paused.
std::string WaitsForResume(const QueuePause& pause);

// "waiting: " and that the tenant's quota of running jobs is used up.
std::string WaitsForQuota();
// The job takes the result of `source`, once there is one.
std::string WaitsForResultOf(const JobKey& source);

// Whether a state_reason is one of WhyWaiting.
bool IsWaitingReason(std::string_view state_reason);

// What the job's history says of a reason; "" = none any more.
v1::JobEvent WaitingEvent(const std::string& reason);
// Whether the job's last event is such a one, too young for another: workers may
// change their minds with each beat, and a history is kept for good.
bool ToldLately(const v1::JobEvent& last, const JobPolicy& policy, Time now);

}  // namespace quantry::server
