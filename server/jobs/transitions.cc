#include "server/jobs/transitions.h"

#include <algorithm>

namespace quantry::server {
namespace {

using enum JobState;

constexpr Transition kTransitions[] = {
    {kQueued, kRunning, "claim"},
    {kQueued, kCancelled, "cancel"},
    {kQueued, kFailed, "max_pending"},
    {kQueued, kSucceeded, "took the result of a job with the same spec"},
    {kRunning, kQueued, "retry, release or lost lease"},
    {kRunning, kCancelling, "cancel"},
    {kRunning, kSucceeded, "complete"},
    {kRunning, kFailed, "failure, quality gate, limit or poison"},
    {kFailed, kQueued, "retried by the client"},
    {kCancelled, kQueued, "retried by the client"},
    {kCancelling, kCancelled, "worker stopped, lease lapsed or commit too late"},
};

}  // namespace

std::span<const Transition> AllowedTransitions() { return kTransitions; }

bool CanTransition(JobState from, JobState to) {
  return std::any_of(std::begin(kTransitions), std::end(kTransitions),
                     [&](const Transition& row) { return row.from == from && row.to == to; });
}

}  // namespace quantry::server
