#pragma once

#include <cstdint>

#include "common/clock.h"

// How long things may take and how often they may fail; one place for all
// limits of server/jobs. spec/service.md 2.2.
namespace quantry::server {

struct JobPolicy {
  Duration lease_ttl = std::chrono::seconds(30);
  // Until the first beat: a reply lost on its way must not hold a job for long.
  Duration first_lease_ttl = std::chrono::seconds(15);
  Duration max_no_progress = std::chrono::minutes(30);  // when the spec has none
  int max_attempts = 3;                                 // when the spec has none
  // Losses without a checkpoint between them that make a job POISON_JOB: on
  // distinct workers.
  int max_distinct_losses = 3;
  // And on whatever worker: ends a job that kills the only worker there is.
  int max_losses_without_checkpoint = 10;
  // A worker that does not confirm a cancel for this long loses the job.
  Duration cancel_grace = std::chrono::seconds(60);
  Duration backoff_first = std::chrono::seconds(1);
  Duration backoff_cap = std::chrono::minutes(5);
  // A worker that was not heard of for this long and holds no job is forgotten:
  // where each job has a machine of its own, each has a worker_id of its own.
  Duration forget_worker_after = std::chrono::hours(24);
  // Jobs that a sweep ends for max_pending, expired jobs it removes and workers it
  // forgets, each: its transaction holds up every other write.
  int max_removed_per_sweep = 1000;
  // A job is told why no worker takes it once it was queued for this long.
  Duration tell_waiting_after = std::chrono::seconds(5);
  // And that this changed at most so often.
  Duration tell_waiting_again_after = std::chrono::seconds(60);
  // One level of priority is worth this much waiting, so nothing starves.
  Duration aging = std::chrono::seconds(60);
};

// Delay before attempt number `failures` + 1: full jitter over
// [backoff_first / 2, min(cap, first * 2^(failures - 1))]. `random` is any
// 64-bit random number.
Duration Backoff(const JobPolicy& policy, int failures, uint64_t random);

}  // namespace quantry::server
