// Wraps a JobStore and counts: time and faults of each call, jobs submitted
// and ended, attempts and their outcomes, stale writes refused.
#pragma once

#include <memory>

#include "server/jobs/job_store.h"
#include "server/metrics/server_metrics.h"

namespace quantry::server {

// `metrics` and `clock` must outlive the result.
std::unique_ptr<JobStore> MeteredJobStore(std::unique_ptr<JobStore> store, const Clock* clock,
                                          ServerMetrics* metrics);

// Counts a job that has ended: by the store above for those its calls name, by
// its ChangeObserver for the others.
void CountEnded(const Job& job, ServerMetrics* metrics);

}  // namespace quantry::server
