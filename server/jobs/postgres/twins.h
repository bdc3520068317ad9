#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "server/jobs/postgres/database.h"
#include "server/jobs/sql_twins.h"

// What is each store's own about jobs that share a result (sql_twins.h). All
// functions run inside the caller's transaction.
namespace quantry::server::postgres {

// One that succeeded, else one that runs, else one that is queued. Locked
// against ending or going away; calls for the same digest wait for each other.
std::optional<sql::Twin> LockTwin(Database& db, const SubmitRequest& request);

// A job has ended: see sql::ShareEnd.
absl::Status EndWaiting(Database& db, const StateChange& ended, Time now);

// The artifact of a job that goes: another job that shares it gets it; its bytes
// become garbage otherwise.
void LeaveArtifact(Database& db, int64_t pk, Time now);

}  // namespace quantry::server::postgres
