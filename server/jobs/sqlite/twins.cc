#include "server/jobs/sqlite/twins.h"

#include <vector>

#include "server/jobs/rules.h"
#include "server/jobs/sqlite/rows.h"
#include "server/jobs/waiting.h"

namespace quantry::server::sqlite {
namespace {

std::string VersionOf(Database& db, int64_t pk) {
  Rows rows = db.Query("SELECT engine_version FROM jobs WHERE pk = ?", pk);
  return rows.Next() ? rows.Text(0) : "";
}

std::vector<int64_t> WaitingFor(Database& db, int64_t pk) {
  Rows rows = db.Query("SELECT pk FROM jobs WHERE waits_for = ? ORDER BY pk", pk);
  std::vector<int64_t> waiting;
  while (rows.Next()) waiting.push_back(rows.Int(0));
  return waiting;
}

// Claimable from now on.
void RunItself(Database& db, int64_t pk, Time now) {
  db.Execute("UPDATE jobs SET waits_for = NULL, state_reason = '' WHERE pk = ?", pk);
  db.Execute("UPDATE queue SET not_before = 0, enqueue_time = ? WHERE pk = ?", now, pk);
  AppendEvent(db, pk, 0, now,
              InfoEvent("the job with the same spec gave no result; this one runs"));
}

}  // namespace

std::optional<Twin> FindTwin(Database& db, const SubmitRequest& request) {
  if (!request.reuse_result || request.engine_version.empty()) return std::nullopt;
  Rows rows = db.Query(
      "SELECT j.pk, j.id, j.state FROM jobs j"
      " LEFT JOIN artifacts a ON a.uid = coalesce(j.shared_artifact, j.uid)"
      " WHERE j.tenant = ?1 AND j.spec_digest = ?2 AND j.waits_for IS NULL AND"
      " ((j.state = 4 AND j.engine_version = ?3 AND a.uid IS NOT NULL)"
      " OR (j.state IN (1, 2) AND j.engine_version IN ('', ?3)))"
      " ORDER BY j.state DESC, j.shared_artifact IS NOT NULL, j.pk LIMIT 1",
      request.key.tenant, request.spec_digest, request.engine_version);
  if (!rows.Next()) return std::nullopt;
  return Twin{.pk = rows.Int(0),
              .key = {request.key.tenant, rows.Text(1)},
              .succeeded = static_cast<JobState>(rows.Int(2)) == JobState::kSucceeded};
}

absl::Status TakeResult(Database& db, int64_t pk, int64_t source, Time now) {
  JobKey owner;
  std::string artifact;
  {
    Rows rows = db.Query(
        "SELECT o.tenant, o.id, a.uid FROM jobs s"
        " JOIN artifacts a ON a.uid = coalesce(s.shared_artifact, s.uid)"
        " JOIN jobs o ON o.pk = a.pk WHERE s.pk = ?",
        source);
    if (rows.Next()) {
      owner = {rows.Text(0), rows.Text(1)};
      artifact = rows.Text(2);
    }
  }
  db.Execute(
      "UPDATE jobs SET result_of = ?2, shared_artifact = ?3, engine_version = ?4 WHERE pk = ?1", pk,
      owner.id, artifact, VersionOf(db, source));
  db.Execute(
      "UPDATE job_payloads SET result = (SELECT result FROM job_payloads WHERE pk = ?2)"
      " WHERE pk = ?1",
      pk, source);
  return ChangeState(db,
                     {.pk = pk,
                      .from = JobState::kQueued,
                      .to = JobState::kSucceeded,
                      .reason = SharesResultOf(owner)},
                     now);
}

void WaitFor(Database& db, int64_t pk, const Twin& twin, Time now) {
  const std::string reason = WaitsForResultOf(twin.key);
  db.Execute("UPDATE jobs SET waits_for = ?2, state_reason = ?3 WHERE pk = ?1", pk, twin.pk,
             reason);
  db.Execute("UPDATE queue SET not_before = ?2 WHERE pk = ?1", pk, kParked);
  AppendEvent(db, pk, 0, now, InfoEvent(reason));
}

absl::Status EndWaiting(Database& db, const StateChange& ended, Time now) {
  const std::string version = VersionOf(db, ended.pk);
  std::optional<Twin> next;
  for (const int64_t pk : WaitingFor(db, ended.pk)) {
    db.NoteChanged(ReadKey(db, pk));
    if (ended.to == JobState::kSucceeded && VersionOf(db, pk) == version) {
      if (absl::Status taken = TakeResult(db, pk, ended.pk, now); !taken.ok()) return taken;
    } else if (next) {
      WaitFor(db, pk, *next, now);
    } else {
      RunItself(db, pk, now);
      next = Twin{.pk = pk, .key = ReadKey(db, pk)};
    }
  }
  return absl::OkStatus();
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
