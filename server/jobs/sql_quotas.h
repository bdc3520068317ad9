#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "server/jobs/job_store.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_rows.h"

// Quotas of tenants, as both SQL stores keep them, each function inside the
// caller's transaction. `Database` is sqlite::Database or postgres::Database.
// Jobs and bytes are counted only for tenants that have a limit, queued jobs
// only up to it.
namespace quantry::server::sql {

#define QUANTRY_QUOTA_QUERY                                                                \
  "SELECT max_queued, max_running, max_stored_bytes, max_submits_per_minute, max_watches," \
  " submits_full_at FROM quotas WHERE tenant = $1 "

// A tenant's limits, and when its bucket of submits is full again (TakeSubmit).
struct QuotaRow {
  TenantQuota quota;
  Time submits_full_at;
};

// No limits when there is no row.
template <class Rows>
QuotaRow QuotaRowIn(Rows rows, const std::string& tenant) {
  if (!rows.Next()) return {TenantQuota{.tenant = tenant}, {}};
  return {{.tenant = tenant,
           .max_queued = rows.Int(0),
           .max_running = rows.Int(1),
           .max_stored_bytes = rows.Int(2),
           .max_submits_per_minute = rows.Int(3),
           .max_watches = rows.Int(4)},
          rows.At(5)};
}

template <class Database>
TenantQuota ReadQuota(Database& db, const std::string& tenant) {
  return QuotaRowIn(db.Query(QUANTRY_QUOTA_QUERY, tenant), tenant).quota;
}

template <class Database>
int64_t RunningJobs(Database& db, const std::string& tenant) {
  return One(db.Query("SELECT count(*) FROM jobs WHERE tenant = $1 AND state IN (2, 3)", tenant));
}

template <class Database>
int64_t ArtifactBytes(Database& db, const std::string& tenant) {
  return One(
      db.Query("SELECT CAST(sum(total_bytes) AS BIGINT) FROM artifacts WHERE tenant = $1", tenant));
}

// Counts all of the tenant's queued jobs.
template <class Database>
TenantUsage ReadUsage(Database& db, const std::string& tenant) {
  const int64_t queued =
      One(db.Query("SELECT count(*) FROM jobs WHERE tenant = $1 AND state = 1", tenant));
  return {ReadQuota(db, tenant), queued, RunningJobs(db, tenant), ArtifactBytes(db, tenant)};
}

// Queued jobs which no worker gets before others of their tenant end, though they are ready.
template <class Database>
int64_t HeldJobs(Database& db, Time now) {
  return One(db.Query(
      "SELECT CAST(coalesce(sum(CASE WHEN room <= 0 THEN ready WHEN ready > room THEN ready - room"
      " ELSE 0 END), 0) AS BIGINT) FROM (SELECT"
      " (SELECT count(*) FROM queue q WHERE q.tenant = t.tenant AND q.state = 1)"
      " - (SELECT count(*) FROM queue q WHERE q.tenant = t.tenant AND q.state = 1"
      " AND q.not_before > 0 AND q.not_before > $1) AS ready,"
      " t.max_running - (SELECT count(*) FROM queue q WHERE q.tenant = t.tenant"
      " AND q.worker_id IS NOT NULL) AS room"
      " FROM quotas t WHERE t.max_running > 0) AS limited",
      now));
}

template <class Database>
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
  return ReadUsage(db, quota.tenant);
}

// Counting reads up to the limit, while others wait for the quota's row or for
// the only writer: 0.2 us a job. A large limit is first held against the counter
// of all tenants' jobs, which costs the same whatever waits.
template <class Database>
absl::Status CheckQueued(Database& db, const TenantQuota& quota) {
  constexpr int64_t kCheapToCount = 100;
  if (quota.max_queued == 0) return absl::OkStatus();
  if (quota.max_queued > kCheapToCount && One(db.Query(db.kCountQueued)) < quota.max_queued) {
    return absl::OkStatus();
  }
  const int64_t queued = One(db.Query(
      "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE tenant = $1 AND state = 1 LIMIT $2) counted",
      quota.tenant, quota.max_queued));
  if (queued < quota.max_queued) return absl::OkStatus();
  return QueuedQuotaReached(quota.tenant, quota.max_queued);
}

// Takes one submit from the tenant's bucket.
template <class Database>
absl::Status CountSubmit(Database& db, const QuotaRow& row, Time now) {
  if (row.quota.max_submits_per_minute == 0) return absl::OkStatus();
  const auto next = TakeSubmit(row.quota, row.submits_full_at, now);
  if (!next.ok()) return next.status();
  db.Execute("UPDATE quotas SET submits_full_at = $1 WHERE tenant = $2", *next, row.quota.tenant);
  return absl::OkStatus();
}

// Whether the tenant of `row` may have another job in the queue; takes one submit
// from its bucket. `upload_bytes`: what its uploads take, of a new job. Errors:
// RESOURCE_EXHAUSTED QUOTA_QUEUED, QUOTA_STORED_BYTES, QUOTA_SUBMIT_RATE.
template <class Database>
absl::Status AdmitQueued(Database& db, const QuotaRow& row, std::optional<int64_t> upload_bytes,
                         Time now) {
  if (absl::Status queued = CheckQueued(db, row.quota); !queued.ok()) return queued;
  if (upload_bytes && row.quota.max_stored_bytes > 0) {
    const int64_t stored = *upload_bytes + ArtifactBytes(db, row.quota.tenant);
    if (absl::Status fits = CheckStoredBytes(row.quota, stored, 0); !fits.ok()) return fits;
  }
  return CountSubmit(db, row, now);
}

// Tenants that run as many jobs as they may.
template <class Database>
std::set<std::string> TenantsAtRunningQuota(Database& db) {
  std::set<std::string> tenants;
  auto rows = db.Query(
      "SELECT tenant FROM quotas WHERE max_running > 0 AND max_running <="
      " (SELECT count(*) FROM jobs j WHERE j.tenant = quotas.tenant AND j.state IN (2, 3))");
  while (rows.Next()) tenants.insert(rows.Text(0));
  return tenants;
}

}  // namespace quantry::server::sql
