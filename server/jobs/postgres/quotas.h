#pragma once

#include <optional>
#include <string>

#include "server/jobs/postgres/database.h"
#include "server/jobs/sql_quotas.h"

// sql_quotas.h for many servers. The row of a quota is locked while its tenant's
// jobs are counted, so that two servers cannot both take the last place;
// tenants without a limit never wait for each other.
namespace quantry::server::postgres {

using sql::ArtifactBytes;
using sql::ReadQuota;
using sql::SetQuota;
using sql::TenantsAtRunningQuota;  // a hint: see MayRunAnother

absl::Status AdmitQueued(Database& db, const std::string& tenant,
                         std::optional<int64_t> upload_bytes, Time now);
// The same for a job that has its result at once.
absl::Status AdmitEnded(Database& db, const std::string& tenant, Time now);

// Holds until the end of the transaction.
bool MayRunAnother(Database& db, const std::string& tenant);

}  // namespace quantry::server::postgres
