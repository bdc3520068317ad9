#pragma once

#include "absl/status/status.h"
#include "server/jobs/sqlite/database.h"

namespace quantry::server::sqlite {

// Brings the database to the newest schema, one transaction a step, counted
// by PRAGMA user_version. A database of a newer version is refused.
absl::Status Migrate(Database& db);
// Up to an older version: what a server of then left behind, for tests.
absl::Status MigrateTo(Database& db, int wanted);

}  // namespace quantry::server::sqlite
