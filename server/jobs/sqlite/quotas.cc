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

absl::Status CheckQueued(Database& db, const TenantQuota& quota) {
  if (quota.max_queued == 0) return absl::OkStatus();
  const int64_t queued = One(
      db.Query("SELECT count(*) FROM (SELECT 1 FROM jobs WHERE tenant = ? AND state = 1 LIMIT ?)",
               quota.tenant, quota.max_queued));
  if (queued < quota.max_queued) return absl::OkStatus();
  return QueuedQuotaReached(quota.tenant, quota.max_queued);
}

absl::Status CountSubmit(Database& db, const TenantQuota& quota, Time now) {
  if (quota.max_submits_per_minute == 0) return absl::OkStatus();
  const Time full_at = FromUnixMicros(
      One(db.Query("SELECT submits_full_at FROM quotas WHERE tenant = ?", quota.tenant)));
  const auto next = TakeSubmit(quota, full_at, now);
  if (!next.ok()) return next.status();
  db.Execute("UPDATE quotas SET submits_full_at = ? WHERE tenant = ?", *next, quota.tenant);
  return absl::OkStatus();
}

}  // namespace

TenantUsage SetQuota(Database& db, const TenantQuota& quota) {
  db.Execute(
      "INSERT INTO quotas (tenant, max_queued, max_running, max_stored_bytes,"
      " max_submits_per_minute, max_watches) VALUES (?, ?, ?, ?, ?, ?)"
      " ON CONFLICT (tenant) DO UPDATE SET max_queued = excluded.max_queued,"
      " max_running = excluded.max_running, max_stored_bytes = excluded.max_stored_bytes,"
      " max_submits_per_minute = excluded.max_submits_per_minute,"
      " max_watches = excluded.max_watches",
      quota.tenant, quota.max_queued, quota.max_running, quota.max_stored_bytes,
      quota.max_submits_per_minute, quota.max_watches);
  return {quota, Queued(db, quota.tenant), Running(db, quota.tenant),
          ArtifactBytes(db, quota.tenant)};
}

TenantQuota ReadQuota(Database& db, const std::string& tenant) {
  TenantQuota quota{.tenant = tenant};
  Rows rows = db.Query(
      "SELECT max_queued, max_running, max_stored_bytes, max_submits_per_minute, max_watches"
      " FROM quotas WHERE tenant = ?",
      tenant);
  if (!rows.Next()) return quota;
  quota.max_queued = rows.Int(0);
  quota.max_running = rows.Int(1);
  quota.max_stored_bytes = rows.Int(2);
  quota.max_submits_per_minute = rows.Int(3);
  quota.max_watches = rows.Int(4);
  return quota;
}

int64_t ArtifactBytes(Database& db, const std::string& tenant) {
  return One(db.Query("SELECT sum(total_bytes) FROM artifacts WHERE tenant = ?", tenant));
}

absl::Status AdmitQueued(Database& db, const std::string& tenant,
                         std::optional<int64_t> upload_bytes, Time now) {
  const TenantQuota quota = ReadQuota(db, tenant);
  if (absl::Status queued = CheckQueued(db, quota); !queued.ok()) return queued;
  if (upload_bytes && quota.max_stored_bytes > 0) {
    absl::Status stored = CheckStoredBytes(quota, *upload_bytes + ArtifactBytes(db, tenant), 0);
    if (!stored.ok()) return stored;
  }
  return CountSubmit(db, quota, now);
}

absl::Status AdmitEnded(Database& db, const std::string& tenant, Time now) {
  return CountSubmit(db, ReadQuota(db, tenant), now);
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
