#pragma once

#include <set>
#include <string>

#include "absl/status/status.h"
#include "server/jobs/job_store.h"
#include "server/jobs/sqlite/database.h"

// Quotas of tenants, each inside the caller's transaction. Jobs are counted
// only for tenants that have a limit, and only up to it.
namespace quantry::server::sqlite {

TenantUsage SetQuota(Database& db, const TenantQuota& quota);

// RESOURCE_EXHAUSTED QUOTA_QUEUED when another job of the tenant may not queue.
absl::Status CheckQueuedQuota(Database& db, const std::string& tenant);

// Tenants that run as many jobs as they may.
std::set<std::string> TenantsAtRunningQuota(Database& db);

}  // namespace quantry::server::sqlite
