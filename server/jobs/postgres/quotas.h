#pragma once

#include <set>
#include <string>

#include "absl/status/status.h"
#include "server/jobs/job_store.h"
#include "server/jobs/postgres/database.h"

// Quotas of tenants, each inside the caller's transaction. Jobs are counted
// only for tenants that have a limit. The row of a quota is locked while its
// tenant's jobs are counted, so that two servers cannot both take the last
// place; tenants without a limit never wait for each other.
namespace quantry::server::postgres {

TenantUsage SetQuota(Database& db, const TenantQuota& quota);

// RESOURCE_EXHAUSTED QUOTA_QUEUED when another job of the tenant may not queue.
absl::Status CheckQueuedQuota(Database& db, const std::string& tenant);

// Tenants that run as many jobs as they may. A hint: see MayRunAnother.
std::set<std::string> TenantsAtRunningQuota(Database& db);
// Holds until the end of the transaction.
bool MayRunAnother(Database& db, const std::string& tenant);

}  // namespace quantry::server::postgres
