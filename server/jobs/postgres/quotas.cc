#include "server/jobs/postgres/quotas.h"

#include "server/jobs/postgres/rows.h"
#include "server/jobs/rules.h"

namespace quantry::server::postgres {
namespace {

int64_t Running(Database& db, const std::string& tenant) {
  return One(db.Query("SELECT count(*) FROM jobs WHERE tenant = $1 AND state IN (2, 3)", tenant));
}

}  // namespace

TenantUsage SetQuota(Database& db, const TenantQuota& quota) {
  if (quota.max_queued == 0 && quota.max_running == 0) {
    db.Execute("DELETE FROM quotas WHERE tenant = $1", quota.tenant);
  } else {
    db.Execute(
        "INSERT INTO quotas (tenant, max_queued, max_running) VALUES ($1, $2, $3)"
        " ON CONFLICT (tenant) DO UPDATE SET max_queued = excluded.max_queued,"
        " max_running = excluded.max_running",
        quota.tenant, quota.max_queued, quota.max_running);
  }
  const int64_t queued =
      One(db.Query("SELECT count(*) FROM jobs WHERE tenant = $1 AND state = 1", quota.tenant));
  return {quota, queued, Running(db, quota.tenant)};
}

absl::Status CheckQueuedQuota(Database& db, const std::string& tenant) {
  const int64_t limit = One(db.Query(
      "SELECT max_queued FROM quotas WHERE tenant = $1 AND max_queued > 0 FOR UPDATE", tenant));
  if (limit == 0) return absl::OkStatus();
  const int64_t queued = One(db.Query(
      "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE tenant = $1 AND state = 1 LIMIT $2) counted",
      tenant, limit));
  return queued < limit ? absl::OkStatus() : QueuedQuotaReached(tenant, limit);
}

std::set<std::string> TenantsAtRunningQuota(Database& db) {
  std::set<std::string> tenants;
  Rows rows = db.Query(
      "SELECT tenant FROM quotas WHERE max_running > 0 AND max_running <="
      " (SELECT count(*) FROM jobs j WHERE j.tenant = quotas.tenant AND j.state IN (2, 3))");
  while (rows.Next()) tenants.insert(rows.Text(0));
  return tenants;
}

bool MayRunAnother(Database& db, const std::string& tenant) {
  const int64_t limit = One(db.Query(
      "SELECT max_running FROM quotas WHERE tenant = $1 AND max_running > 0 FOR UPDATE", tenant));
  return limit == 0 || Running(db, tenant) < limit;
}

}  // namespace quantry::server::postgres
