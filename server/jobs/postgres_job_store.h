#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/jobs/operator_view.h"
#include "server/jobs/policy.h"

namespace quantry::server {

struct PostgresOptions {
  std::string conninfo;  // postgres::MakeConninfo
  JobPolicy policy;
  int connections = 16;  // at most; opened when needed
  ChangeObserver on_changed = {};
};

// JobStore in a PostgreSQL database, which any number of servers may share.
// Each call is one transaction on a connection of its own, with
// synchronous_commit on except for heartbeats that bring progress alone.
// Claims take rows with FOR UPDATE SKIP LOCKED; all other writes lock the job
// first, so callers of different jobs do not wait for each other.
//
// Brings the schema up to date. While the database is away calls fail with
// UNAVAILABLE STORE_UNAVAILABLE; when it is back they work again. Errors of
// opening: UNAVAILABLE STORE_UNAVAILABLE (also a schema of a newer version).
absl::StatusOr<std::unique_ptr<ViewedJobStore>> OpenPostgresJobStore(
    const PostgresOptions& options);

}  // namespace quantry::server
