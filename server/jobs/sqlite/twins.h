#pragma once

#include <optional>

#include "server/jobs/job_store.h"
#include "server/jobs/records.h"
#include "server/jobs/sqlite/database.h"

// Jobs with the same spec that share one result. A job that waits for another
// (jobs.waits_for) is QUEUED with a parked queue row; nobody waits for it. All
// functions run inside the caller's transaction.
namespace quantry::server::sqlite {

// A job whose result a new one may take.
struct Twin {
  int64_t pk = 0;
  JobKey key;
  bool succeeded = false;  // else QUEUED or RUNNING
};

// One that succeeded, else one that runs, else one that is queued.
std::optional<Twin> FindTwin(Database& db, const SubmitRequest& request);

// QUEUED -> SUCCEEDED with the artifact of `source`. No queue row may be left.
absl::Status TakeResult(Database& db, int64_t pk, int64_t source, Time now);

// QUEUED until `twin` ends.
void WaitFor(Database& db, int64_t pk, const Twin& twin, Time now);

// A job has ended: those that wait for it take its result, or the first of them
// runs itself and the others wait for that one.
absl::Status EndWaiting(Database& db, const StateChange& ended, Time now);

// The artifact of a job that goes: another job that shares it gets it; its bytes
// become garbage otherwise.
void LeaveArtifact(Database& db, int64_t pk, Time now);

}  // namespace quantry::server::sqlite
