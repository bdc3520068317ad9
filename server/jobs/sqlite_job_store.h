#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/jobs/operator_view.h"
#include "server/jobs/policy.h"

namespace quantry::server {

struct SqliteOptions {
  std::string data_dir;  // created when absent; never on a network filesystem
  JobPolicy policy;
  int readers = 4;  // connections beside the writer's
  ChangeObserver on_changed = {};
};

// JobStore in {data_dir}/quantry.db: SQLite in WAL mode with
// synchronous=FULL. One thread writes: calls that arrive while it commits
// become one transaction (group commit), each in its own savepoint, and none
// returns before that commit is on disk. Readers have their own connections
// and never wait for the writer.
//
// {data_dir}/lock is held for the life of the object. Errors: FAILED_PRECONDITION
// DATA_DIR_LOCKED (names the other process), RESOURCE_EXHAUSTED DISK_FULL,
// UNAVAILABLE STORE_UNAVAILABLE (also a database made by a newer version).
absl::StatusOr<std::unique_ptr<ViewedJobStore>> OpenSqliteJobStore(const SqliteOptions& options);

}  // namespace quantry::server
