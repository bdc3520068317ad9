#pragma once

#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "server/jobs/job_store.h"
#include "server/jobs/postgres/database.h"

// Quotas of tenants, each inside the caller's transaction. Jobs and bytes are
// counted only for tenants that have a limit. The row of a quota is locked while its
// tenant's jobs are counted, so that two servers cannot both take the last
// place; tenants without a limit never wait for each other.
namespace quantry::server::postgres {

TenantUsage SetQuota(Database& db, const TenantQuota& quota);
TenantQuota ReadQuota(Database& db, const std::string& tenant);
int64_t ArtifactBytes(Database& db, const std::string& tenant);

// Whether the tenant may have another job in the queue; takes one submit from
// its bucket. RESOURCE_EXHAUSTED QUOTA_QUEUED, QUOTA_STORED_BYTES (of a new job,
// which says what the uploads take) or QUOTA_SUBMIT_RATE.
absl::Status AdmitQueued(Database& db, const std::string& tenant,
                         std::optional<int64_t> upload_bytes, Time now);
// The same for a job that has its result at once.
absl::Status AdmitEnded(Database& db, const std::string& tenant, Time now);

// Tenants that run as many jobs as they may. A hint: see MayRunAnother.
std::set<std::string> TenantsAtRunningQuota(Database& db);
// Holds until the end of the transaction.
bool MayRunAnother(Database& db, const std::string& tenant);

}  // namespace quantry::server::postgres
