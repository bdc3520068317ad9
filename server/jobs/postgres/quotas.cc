#include "server/jobs/postgres/quotas.h"

namespace quantry::server::postgres {

sql::QuotaRow LockQuota(Database& db, const std::string& tenant) {
  return sql::QuotaRowIn(
      db.Query(QUANTRY_QUOTA_QUERY
               "AND (max_queued > 0 OR max_stored_bytes > 0 OR max_submits_per_minute > 0)"
               " FOR UPDATE",
               tenant),
      tenant);
}

bool MayRunAnother(Database& db, const std::string& tenant) {
  db.Script("SAVEPOINT quota");
  const int64_t limit = sql::One(db.Query(
      "SELECT max_running FROM quotas WHERE tenant = $1 AND max_running > 0 FOR UPDATE", tenant));
  const bool may = limit == 0 || sql::RunningJobs(db, tenant) < limit;
  db.Script(may ? "RELEASE quota" : "ROLLBACK TO quota; RELEASE quota");
  return may;
}

}  // namespace quantry::server::postgres
