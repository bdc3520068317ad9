#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "server/jobs/sql_twins.h"
#include "server/jobs/sqlite/database.h"

// What is each store's own about jobs that share a result (sql_twins.h). All
// functions run inside the caller's transaction.
namespace quantry::server::sqlite {

// A job has ended: see sql::ShareEnd.
absl::Status EndWaiting(Database& db, const StateChange& ended, Time now);

// The artifact of a job that goes: another job that shares it gets it; its bytes
// become garbage otherwise.
void LeaveArtifact(Database& db, int64_t pk, Time now);

}  // namespace quantry::server::sqlite
