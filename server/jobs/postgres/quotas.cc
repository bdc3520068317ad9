#include "server/jobs/postgres/quotas.h"

namespace quantry::server::postgres {
namespace {

// What a submit is measured by, its row locked where it limits submits.
sql::QuotaRow LockQuota(Database& db, const std::string& tenant) {
  return sql::QuotaRowIn(
      db.Query(QUANTRY_QUOTA_QUERY
               "AND (max_queued > 0 OR max_stored_bytes > 0 OR max_submits_per_minute > 0)"
               " FOR UPDATE",
               tenant),
      tenant);
}

}  // namespace

absl::Status AdmitQueued(Database& db, const std::string& tenant,
                         std::optional<int64_t> upload_bytes, Time now) {
  return sql::AdmitQueued(db, LockQuota(db, tenant), upload_bytes, now);
}

absl::Status AdmitEnded(Database& db, const std::string& tenant, Time now) {
  return sql::CountSubmit(db, LockQuota(db, tenant), now);
}

bool MayRunAnother(Database& db, const std::string& tenant) {
  const int64_t limit = sql::One(db.Query(
      "SELECT max_running FROM quotas WHERE tenant = $1 AND max_running > 0 FOR UPDATE", tenant));
  return limit == 0 || sql::RunningJobs(db, tenant) < limit;
}

}  // namespace quantry::server::postgres
