#include "server/jobs/postgres/twins.h"

#include <vector>

#include "server/jobs/postgres/rows.h"
#include "server/jobs/sql_rows.h"

namespace quantry::server::postgres {
namespace {

// A job found may have ended or gone before it is locked; then another is looked for.
constexpr int kTries = 3;

// The row that must not change: the owner's of the artifact, or of the job that
// is to end. False when it is another's by now.
bool Hold(Database& db, const sql::Twin& twin) {
  if (!twin.succeeded) {
    return db
        .Query(
            "SELECT 1 FROM jobs WHERE pk = $1 AND state IN (1, 2) AND waits_for IS NULL FOR SHARE",
            twin.pk)
        .Next();
  }
  return db
      .Query(
          "SELECT 1 FROM jobs s JOIN artifacts a ON a.uid = coalesce(s.shared_artifact, s.uid)"
          " JOIN jobs o ON o.pk = a.pk WHERE s.pk = $1 FOR SHARE OF s, a, o",
          twin.pk)
      .Next();
}

// Locked: those that still wait.
std::vector<int64_t> LockWaitingFor(Database& db, int64_t pk) {
  std::vector<int64_t> waiting;
  Rows rows = db.Query("SELECT pk FROM jobs WHERE waits_for = $1 ORDER BY pk", pk);
  while (rows.Next()) {
    const int64_t other = rows.Int(0);
    if (!LockJob(db, other)) continue;
    if (sql::One(db.Query("SELECT waits_for FROM jobs WHERE pk = $1", other)) != pk) continue;
    waiting.push_back(other);
  }
  return waiting;
}

}  // namespace

std::optional<sql::Twin> LockTwin(Database& db, const SubmitRequest& request) {
  if (!request.reuse_result || request.engine_version.empty()) return std::nullopt;
  db.Execute("SELECT pg_advisory_xact_lock(hashtextextended($1::text || ' ' || $2::text, 0))",
             request.key.tenant, request.spec_digest);
  for (int tries = 0; tries < kTries; ++tries) {
    std::optional<sql::Twin> twin = sql::FindTwin(db, request);
    if (!twin || Hold(db, *twin)) return twin;
  }
  return std::nullopt;
}

absl::Status EndWaiting(Database& db, const StateChange& ended, Time now) {
  return sql::ShareEnd(db, ended, LockWaitingFor(db, ended.pk), now);
}

void LeaveArtifact(Database& db, int64_t pk, Time now) {
  Rows owned = db.Query("SELECT uid FROM artifacts WHERE pk = $1 FOR UPDATE", pk);
  if (!owned.Next()) return;
  const std::string artifact = owned.Text(0);
  Rows heir = db.Query(
      "SELECT pk FROM jobs WHERE shared_artifact = $1 AND pk <> $2 ORDER BY pk LIMIT 1"
      " FOR NO KEY UPDATE",
      artifact, pk);
  if (heir.Next()) {
    db.Execute("UPDATE artifacts SET pk = $1 WHERE uid = $2", heir.Int(0), artifact);
    return;
  }
  db.Execute(
      "INSERT INTO garbage (job_uid, tenant, create_time)"
      " SELECT uid, tenant, $1::bigint FROM artifacts WHERE pk = $2 ON CONFLICT DO NOTHING",
      now, pk);
}

}  // namespace quantry::server::postgres
