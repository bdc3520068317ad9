#pragma once

#include <span>
#include <string>

#include "server/jobs/job.h"
#include "server/jobs/job_store.h"

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
// "waiting: " and what each of them (at most three) has against it.
std::string WhyWaiting(const JobNeeds& needs, std::span<const Worker> live);

// "waiting: " and that the queue is paused.
std::string WaitsForResume(const QueuePause& pause);

// "waiting: " and that the tenant's quota of running jobs is used up.
std::string WaitsForQuota();
// The job takes the result of `source`, once there is one.
std::string WaitsForResultOf(const JobKey& source);

// Whether a state_reason is one of WhyWaiting.
bool IsWaitingReason(std::string_view state_reason);

}  // namespace quantry::server
