#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "server/jobs/sql_quotas.h"

// Fair shares: whose jobs a claim looks at first, in both SQL stores.
namespace quantry::server::sql {

// Tenants that have queued jobs and may run another one: who runs fewest first,
// of those with equally many who was served longest ago. A loose index scan:
// one step of queue_claimable for each tenant, however deep the queue is. Who
// waits alone has no turns to count: that would read each job it runs.
//
// Where claims run side by side (PostgreSQL) none sees the others' before they
// are committed, so a tenant may get as many jobs too many as there are claims
// under way.
template <class Database>
std::vector<std::string> TenantsInTurn(Database& db) {
  const std::set<std::string> passed_over = TenantsAtRunningQuota(db);
  auto rows = db.Query(
      "WITH RECURSIVE waiting (tenant) AS (SELECT min(tenant) FROM queue WHERE state = 1"
      " UNION ALL SELECT (SELECT min(q.tenant) FROM queue q WHERE q.state = 1"
      " AND q.tenant > waiting.tenant) FROM waiting WHERE waiting.tenant IS NOT NULL)"
      " SELECT tenant FROM waiting WHERE tenant IS NOT NULL ORDER BY"
      " CASE WHEN (SELECT count(tenant) FROM waiting) > 1 THEN"
      " (SELECT count(*) FROM queue q WHERE q.tenant = waiting.tenant"
      " AND q.worker_id IS NOT NULL AND q.state <> 1) END,"
      " coalesce((SELECT max(served.last_claim) FROM (SELECT max(j.last_claim) AS last_claim"
      " FROM jobs j WHERE j.tenant = waiting.tenant AND j.last_claim IS NOT NULL"
      " UNION ALL SELECT t.last_claim FROM turns t WHERE t.tenant = waiting.tenant) served), 0),"
      " tenant");
  std::vector<std::string> tenants;
  while (rows.Next()) {
    if (!passed_over.contains(rows.Text(0))) tenants.push_back(rows.Text(0));
  }
  return tenants;
}

// The job is about to go: its tenant was served all the same.
template <class Database>
void KeepTurn(Database& db, int64_t pk) {
  db.Execute(
      "INSERT INTO turns (tenant, last_claim) SELECT tenant, last_claim FROM jobs"
      " WHERE pk = $1 AND last_claim IS NOT NULL ON CONFLICT (tenant) DO UPDATE"
      " SET last_claim = excluded.last_claim WHERE excluded.last_claim > turns.last_claim",
      pk);
}

}  // namespace quantry::server::sql
