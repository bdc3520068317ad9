#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/jobs/job_store.h"
#include "server/jobs/records.h"
#include "server/jobs/rules.h"
#include "server/jobs/waiting.h"

// Jobs with the same spec that share one result, as both SQL stores do it. A job
// that waits for another (jobs.waits_for) is QUEUED with a parked queue row;
// nobody waits for it. All functions run inside the caller's transaction, with
// the rows locked that another transaction could change. `Database` is
// sqlite::Database or postgres::Database; AppendEvent, ChangeState and ReadKey
// are those beside it.
namespace quantry::server::sql {

// A job whose result a new one may take.
struct Twin {
  int64_t pk = 0;
  JobKey key;
  bool succeeded = false;  // else QUEUED or RUNNING
};

// How many jobs wait for one: its end rewrites all of them in one transaction.
inline constexpr int kMaxWaiting = 100;

// One that succeeded, else one that runs, else one that is queued.
template <class Database>
std::optional<Twin> FindTwin(Database& db, const SubmitRequest& request) {
  if (!request.reuse_result || request.engine_version.empty()) return std::nullopt;
  auto rows = db.Query(
      "SELECT j.pk, j.id, j.state FROM jobs j"
      " LEFT JOIN artifacts a ON a.uid = coalesce(j.shared_artifact, j.uid)"
      " WHERE j.tenant = $1 AND j.spec_digest = $2 AND j.waits_for IS NULL AND"
      " ((j.state = 4 AND j.engine_version = $3 AND a.uid IS NOT NULL)"
      " OR (j.state IN (1, 2) AND j.engine_version IN ('', $3) AND (SELECT count(*) FROM"
      " (SELECT 1 FROM jobs w WHERE w.waits_for = j.pk LIMIT $4) waiting) < $4))"
      " ORDER BY j.state DESC, j.shared_artifact IS NOT NULL, j.pk LIMIT 1",
      request.key.tenant, request.spec_digest, request.engine_version, kMaxWaiting);
  if (!rows.Next()) return std::nullopt;
  return Twin{.pk = rows.Int(0),
              .key = {request.key.tenant, rows.Text(1)},
              .succeeded = static_cast<JobState>(rows.Int(2)) == JobState::kSucceeded};
}

template <class Database>
std::string EngineVersionOf(Database& db, int64_t pk) {
  auto rows = db.Query("SELECT engine_version FROM jobs WHERE pk = $1", pk);
  return rows.Next() ? rows.Text(0) : "";
}

// QUEUED -> SUCCEEDED with the artifact of `source`. No queue row may be left.
template <class Database>
absl::Status TakeResult(Database& db, int64_t pk, int64_t source, Time now) {
  JobKey owner;
  std::string artifact;
  {
    auto rows = db.Query(
        "SELECT o.tenant, o.id, a.uid FROM jobs s"
        " JOIN artifacts a ON a.uid = coalesce(s.shared_artifact, s.uid)"
        " JOIN jobs o ON o.pk = a.pk WHERE s.pk = $1",
        source);
    if (rows.Next()) {
      owner = {rows.Text(0), rows.Text(1)};
      artifact = rows.Text(2);
    }
  }
  db.Execute(
      "UPDATE jobs SET result_of = $2, shared_artifact = $3, engine_version = $4 WHERE pk = $1", pk,
      owner.id, artifact, EngineVersionOf(db, source));
  db.Execute(
      "UPDATE job_payloads SET result = (SELECT result FROM job_payloads WHERE pk = $2)"
      " WHERE pk = $1",
      pk, source);
  return ChangeState(db,
                     {.pk = pk,
                      .from = JobState::kQueued,
                      .to = JobState::kSucceeded,
                      .reason = SharesResultOf(owner)},
                     now);
}

// QUEUED until `twin` ends.
template <class Database>
void WaitFor(Database& db, int64_t pk, const Twin& twin, Time now) {
  const std::string reason = WaitsForResultOf(twin.key);
  db.Execute("UPDATE jobs SET waits_for = $2, state_reason = $3 WHERE pk = $1", pk, twin.pk,
             reason);
  db.Execute("UPDATE queue SET not_before = $2 WHERE pk = $1", pk, kParked);
  AppendEvent(db, pk, 0, now, InfoEvent(reason));
}

// Claimable from now on.
template <class Database>
void RunItself(Database& db, int64_t pk, Time now) {
  db.Execute("UPDATE jobs SET waits_for = NULL, state_reason = '' WHERE pk = $1", pk);
  db.Execute("UPDATE queue SET not_before = 0, enqueue_time = $2 WHERE pk = $1", pk, now);
  AppendEvent(db, pk, 0, now,
              InfoEvent("the job with the same spec gave no result; this one runs"));
}

// A job has ended: those that wait for it take its result, or the first of them
// runs itself and the others wait for that one.
template <class Database>
absl::Status ShareEnd(Database& db, const StateChange& ended, const std::vector<int64_t>& waiting,
                      Time now) {
  if (waiting.empty()) return absl::OkStatus();
  const std::string version = EngineVersionOf(db, ended.pk);
  std::optional<Twin> next;
  for (const int64_t pk : waiting) {
    db.NoteChanged(ReadKey(db, pk));
    if (ended.to == JobState::kSucceeded && EngineVersionOf(db, pk) == version) {
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

}  // namespace quantry::server::sql
