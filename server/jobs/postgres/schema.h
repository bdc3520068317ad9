#pragma once

#include "absl/status/status.h"
#include "server/jobs/postgres/database.h"

namespace quantry::server::postgres {

// Brings the database to the newest schema, one transaction a step, counted in
// the table quantry_schema. Servers that start at once take turns (advisory
// lock). A database of a newer version is refused with STORE_UNAVAILABLE and
// left alone.
absl::Status Migrate(Database& db);
// Up to an older version: what a server of then left behind, for tests.
absl::Status MigrateTo(Database& db, int wanted);

// Advisory locks of this schema (several may share a database).
// The migration's is held by the session, the sweep's by the transaction.
inline constexpr const char* kMigrationLock =
    "hashtextextended('quantry migration ' || current_schema(), 0)";
inline constexpr const char* kSweepLock =
    "hashtextextended('quantry sweep ' || current_schema(), 0)";

}  // namespace quantry::server::postgres
