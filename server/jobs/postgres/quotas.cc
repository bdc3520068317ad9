#include "server/jobs/postgres/quotas.h"

#include "server/jobs/postgres/rows.h"
#include "server/jobs/rules.h"

namespace quantry::server::postgres {
namespace {

int64_t Running(Database& db, const std::string& tenant) {
  return One(db.Query("SELECT count(*) FROM jobs WHERE tenant = $1 AND state IN (2, 3)", tenant));
}

constexpr const char* kSelectQuota =
    "SELECT max_queued, max_running, max_stored_bytes, max_submits_per_minute, max_watches,"
    " submits_full_at FROM quotas WHERE tenant = $1 ";

TenantQuota QuotaOf(const Rows& rows, const std::string& tenant) {
  return {.tenant = tenant,
          .max_queued = rows.Int(0),
          .max_running = rows.Int(1),
          .max_stored_bytes = rows.Int(2),
          .max_submits_per_minute = rows.Int(3),
          .max_watches = rows.Int(4)};
}

// What a submit is measured by, its row locked.
struct Locked {
  TenantQuota quota;
  Time submits_full_at;
};

Locked LockQuota(Database& db, const std::string& tenant) {
  static const std::string sql =
      std::string(kSelectQuota) +
      "AND (max_queued > 0 OR max_stored_bytes > 0 OR max_submits_per_minute > 0) FOR UPDATE";
  Rows rows = db.Query(sql, tenant);
  if (!rows.Next()) return {};
  return {QuotaOf(rows, tenant), rows.At(5)};
}

absl::Status CheckQueued(Database& db, const TenantQuota& quota) {
  if (quota.max_queued == 0) return absl::OkStatus();
  const int64_t queued = One(db.Query(
      "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE tenant = $1 AND state = 1 LIMIT $2) counted",
      quota.tenant, quota.max_queued));
  if (queued < quota.max_queued) return absl::OkStatus();
  return QueuedQuotaReached(quota.tenant, quota.max_queued);
}

absl::Status CountSubmit(Database& db, const Locked& locked, Time now) {
  const TenantQuota& quota = locked.quota;
  if (quota.max_submits_per_minute == 0) return absl::OkStatus();
  const auto next = TakeSubmit(quota, locked.submits_full_at, now);
  if (!next.ok()) return next.status();
  db.Execute("UPDATE quotas SET submits_full_at = $1 WHERE tenant = $2", *next, quota.tenant);
  return absl::OkStatus();
}

}  // namespace

TenantUsage SetQuota(Database& db, const TenantQuota& quota) {
  db.Execute(
      "INSERT INTO quotas (tenant, max_queued, max_running, max_stored_bytes,"
      " max_submits_per_minute, max_watches) VALUES ($1, $2, $3, $4, $5, $6)"
      " ON CONFLICT (tenant) DO UPDATE SET max_queued = excluded.max_queued,"
      " max_running = excluded.max_running, max_stored_bytes = excluded.max_stored_bytes,"
      " max_submits_per_minute = excluded.max_submits_per_minute,"
      " max_watches = excluded.max_watches",
      quota.tenant, quota.max_queued, quota.max_running, quota.max_stored_bytes,
      quota.max_submits_per_minute, quota.max_watches);
  const int64_t queued =
      One(db.Query("SELECT count(*) FROM jobs WHERE tenant = $1 AND state = 1", quota.tenant));
  return {quota, queued, Running(db, quota.tenant), ArtifactBytes(db, quota.tenant)};
}

TenantQuota ReadQuota(Database& db, const std::string& tenant) {
  Rows rows = db.Query(kSelectQuota, tenant);
  return rows.Next() ? QuotaOf(rows, tenant) : TenantQuota{.tenant = tenant};
}

int64_t ArtifactBytes(Database& db, const std::string& tenant) {
  return One(db.Query("SELECT sum(total_bytes)::bigint FROM artifacts WHERE tenant = $1", tenant));
}

absl::Status AdmitQueued(Database& db, const std::string& tenant,
                         std::optional<int64_t> upload_bytes, Time now) {
  const Locked locked = LockQuota(db, tenant);
  if (absl::Status queued = CheckQueued(db, locked.quota); !queued.ok()) return queued;
  if (upload_bytes && locked.quota.max_stored_bytes > 0) {
    absl::Status stored =
        CheckStoredBytes(locked.quota, *upload_bytes + ArtifactBytes(db, tenant), 0);
    if (!stored.ok()) return stored;
  }
  return CountSubmit(db, locked, now);
}

absl::Status AdmitEnded(Database& db, const std::string& tenant, Time now) {
  return CountSubmit(db, LockQuota(db, tenant), now);
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
