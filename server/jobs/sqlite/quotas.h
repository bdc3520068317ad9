#pragma once

#include <optional>
#include <string>

#include "server/jobs/sql_quotas.h"
#include "server/jobs/sqlite/database.h"

// sql_quotas.h for a store with one writer: nothing to lock.
namespace quantry::server::sqlite {

using sql::ArtifactBytes;
using sql::ReadQuota;
using sql::ReadUsage;
using sql::SetQuota;
using sql::TenantsAtRunningQuota;

inline absl::Status AdmitQueued(Database& db, const std::string& tenant,
                                std::optional<int64_t> upload_bytes, Time now) {
  return sql::AdmitQueued(db, sql::QuotaRowIn(db.Query(QUANTRY_QUOTA_QUERY, tenant), tenant),
                          upload_bytes, now);
}

// The same for a job that has its result at once.
inline absl::Status AdmitEnded(Database& db, const std::string& tenant, Time now) {
  return sql::CountSubmit(db, sql::QuotaRowIn(db.Query(QUANTRY_QUOTA_QUERY, tenant), tenant), now);
}

}  // namespace quantry::server::sqlite
