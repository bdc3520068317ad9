#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "server/jobs/job_store.h"

namespace quantry::server {

// Jobs of all tenants, as an operator looks at them.
enum class JobsAcross { kWaiting, kLeased, kEnded };

// What pages for operators read beside JobStore. Thread-safe; each call is one
// snapshot. Errors: UNAVAILABLE STORE_UNAVAILABLE.
class OperatorView {
 public:
  virtual ~OperatorView() = default;

  // At most `limit` jobs, found by an index: waiting ones longest first, leased
  // ones by worker, ended ones by their end, newest first.
  virtual absl::StatusOr<std::vector<Job>> ListAcross(JobsAcross which, int limit) = 0;
};

// A store that can be looked at so. Wrapped stores are JobStores alone: who
// needs the view keeps it from before.
class ViewedJobStore : public JobStore, public OperatorView {};

}  // namespace quantry::server
