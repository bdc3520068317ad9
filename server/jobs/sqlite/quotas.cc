#include "server/jobs/sqlite/quotas.h"

#include "server/jobs/rules.h"

namespace quantry::server::sqlite {
namespace {

int64_t One(Rows rows) { return rows.Next() ? rows.Int(0) : 0; }

int64_t Queued(Database& db, const std::string& tenant) {
  return One(db.Query("SELECT count(*) FROM jobs WHERE tenant = ? AND state = 1", tenant));
}

int64_t Running(Database& db, const std::string& tenant) {
  return One(db.Query("SELECT count(*) FROM jobs WHERE tenant = ? AND state IN (2, 3)", tenant));
}

}  // namespace

TenantUsage SetQuota(Database& db, const TenantQuota& quota) {
  if (quota.max_queued == 0 && quota.max_running == 0) {
    db.Execute("DELETE FROM quotas WHERE tenant = ?", quota.tenant);
  } else {
    db.Execute("INSERT OR REPLACE INTO quotas (tenant, max_queued, max_running) VALUES (?, ?, ?)",
               quota.tenant, quota.max_queued, quota.max_running);
  }
  return {quota, Queued(db, quota.tenant), Running(db, quota.tenant)};
}

absl::Status CheckQueuedQuota(Database& db, const std::string& tenant) {
  const int64_t limit = One(db.Query("SELECT max_queued FROM quotas WHERE tenant = ?", tenant));
  if (limit == 0) return absl::OkStatus();
  const int64_t queued = One(
      db.Query("SELECT count(*) FROM (SELECT 1 FROM jobs WHERE tenant = ? AND state = 1 LIMIT ?)",
               tenant, limit));
  if (queued < limit) return absl::OkStatus();
  return QueuedQuotaReached(tenant, limit);
}

std::set<std::string> TenantsAtRunningQuota(Database& db) {
  std::set<std::string> tenants;
  Rows rows = db.Query(
      "SELECT tenant FROM quotas WHERE max_running > 0 AND max_running <="
      " (SELECT count(*) FROM jobs j WHERE j.tenant = quotas.tenant AND j.state IN (2, 3))");
  while (rows.Next()) tenants.insert(rows.Text(0));
  return tenants;
}

}  // namespace quantry::server::sqlite
