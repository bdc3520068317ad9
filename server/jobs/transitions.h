#pragma once

#include <span>
#include <string_view>

#include "server/jobs/job.h"

// The one table of allowed state changes; the store asks it before every
// write and the tests walk it.
//
//   QUEUED --claim--> RUNNING --complete--> SUCCEEDED
//   RUNNING --retry, release, lost--> QUEUED
//   RUNNING --fail, gate, limit, poison--> FAILED
//   RUNNING --cancel--> CANCELLING --worker stopped, lost, late commit--> CANCELLED
//   QUEUED --cancel--> CANCELLED,  QUEUED --max_pending--> FAILED
//   FAILED, CANCELLED --retried by the client--> QUEUED
namespace quantry::server {

struct Transition {
  JobState from;
  JobState to;
  std::string_view cause;
};

std::span<const Transition> AllowedTransitions();
bool CanTransition(JobState from, JobState to);

}  // namespace quantry::server
