#include "server/jobs/sqlite/twins.h"

#include "server/jobs/sql_rows.h"
#include "server/jobs/sqlite/rows.h"

namespace quantry::server::sqlite {

absl::Status EndWaiting(Database& db, const StateChange& ended, Time now) {
  const auto waiting =
      sql::Keys(db.Query("SELECT pk FROM jobs WHERE waits_for = ? ORDER BY pk", ended.pk));
  return sql::ShareEnd(db, ended, waiting, now);
}

void LeaveArtifact(Database& db, int64_t pk, Time now) {
  std::string artifact;
  {
    Rows rows = db.Query("SELECT uid FROM artifacts WHERE pk = ?", pk);
    if (!rows.Next()) return;
    artifact = rows.Text(0);
  }
  std::optional<int64_t> heir;
  {
    Rows rows =
        db.Query("SELECT pk FROM jobs WHERE shared_artifact = ? AND pk <> ? ORDER BY pk LIMIT 1",
                 artifact, pk);
    if (rows.Next()) heir = rows.Int(0);
  }
  if (heir) {
    db.Execute("UPDATE artifacts SET pk = ? WHERE uid = ?", *heir, artifact);
    return;
  }
  db.Execute(
      "INSERT OR IGNORE INTO garbage (job_uid, tenant, create_time)"
      " SELECT uid, tenant, ?1 FROM artifacts WHERE pk = ?2",
      now, pk);
}

}  // namespace quantry::server::sqlite
