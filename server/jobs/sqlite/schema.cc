#include "server/jobs/sqlite/schema.h"

#include <iterator>
#include <string>

#include "common/errors.h"

namespace quantry::server::sqlite {
namespace {

// Times are microseconds since 1970. States: server/jobs/job.h.
//
// `jobs` changes with a job's state; payloads that never or seldom change lie
// beside it; `queue` holds what claims and heartbeats touch, a small row for
// each job that has not ended.
constexpr const char* kVersion1 = R"sql(
CREATE TABLE jobs (
  pk INTEGER PRIMARY KEY,
  tenant TEXT NOT NULL,
  id TEXT NOT NULL,
  uid TEXT NOT NULL UNIQUE,
  request_id TEXT,
  request_hash TEXT NOT NULL,
  display_name TEXT NOT NULL,
  method TEXT NOT NULL,
  spec_digest TEXT NOT NULL,
  priority INTEGER NOT NULL,
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 6),
  state_reason TEXT NOT NULL DEFAULT '',
  epoch INTEGER NOT NULL DEFAULT 0,
  worker TEXT NOT NULL DEFAULT '',
  version INTEGER NOT NULL DEFAULT 1,
  user_failures INTEGER NOT NULL DEFAULT 0,
  worker_losses INTEGER NOT NULL DEFAULT 0,
  create_time INTEGER NOT NULL,
  update_time INTEGER NOT NULL,
  start_time INTEGER,
  end_time INTEGER,
  expire_time INTEGER,
  UNIQUE (tenant, id),
  CHECK ((state >= 4) = (end_time IS NOT NULL))
);
CREATE UNIQUE INDEX jobs_by_request ON jobs (tenant, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX jobs_newest ON jobs (tenant, create_time DESC, uid DESC);
CREATE INDEX jobs_by_state ON jobs (tenant, state, create_time DESC, uid DESC);
CREATE INDEX jobs_expiring ON jobs (expire_time) WHERE expire_time IS NOT NULL AND state >= 4;

CREATE TABLE job_payloads (
  pk INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
  spec BLOB NOT NULL,
  error BLOB,
  result BLOB
);
CREATE TABLE job_labels (
  pk INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (pk, key)
) WITHOUT ROWID;
CREATE TABLE job_progress (
  pk INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
  progress BLOB NOT NULL
);
CREATE TABLE job_checkpoints (
  pk INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
  epoch INTEGER NOT NULL,
  checkpoint BLOB NOT NULL
);
CREATE TABLE job_losses (
  pk INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
  worker_id TEXT NOT NULL,
  PRIMARY KEY (pk, worker_id)
) WITHOUT ROWID;
CREATE TABLE job_events (
  pk INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
  seq INTEGER NOT NULL,
  event BLOB NOT NULL,
  PRIMARY KEY (pk, seq)
) WITHOUT ROWID;

CREATE TABLE queue (
  pk INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
  state INTEGER NOT NULL CHECK (state IN (1, 2, 3)),
  method TEXT NOT NULL,
  gpu_count INTEGER NOT NULL,
  min_gpu_memory INTEGER NOT NULL,
  host_memory INTEGER NOT NULL,
  rank INTEGER NOT NULL,
  enqueue_time INTEGER NOT NULL,
  not_before INTEGER NOT NULL DEFAULT 0,
  pending_deadline INTEGER,
  max_attempts INTEGER NOT NULL,
  max_pending INTEGER,
  max_run INTEGER,
  max_no_progress INTEGER NOT NULL,
  run_used INTEGER NOT NULL DEFAULT 0,
  losses_since_checkpoint INTEGER NOT NULL DEFAULT 0,
  epoch INTEGER NOT NULL DEFAULT 0,
  worker_id TEXT,
  acquire_id TEXT,
  claim_time INTEGER,
  cancel_time INTEGER,
  lease_until INTEGER,
  steps_done INTEGER NOT NULL DEFAULT 0,
  progress_time INTEGER,
  next_event_offset INTEGER NOT NULL DEFAULT 0,
  CHECK ((state = 1) = (lease_until IS NULL)),
  CHECK ((state = 1) = (worker_id IS NULL))
);
CREATE INDEX queue_claimable ON queue (method, gpu_count, rank) WHERE state = 1;
CREATE INDEX queue_waiting ON queue (enqueue_time) WHERE state = 1;
CREATE INDEX queue_delayed ON queue (not_before) WHERE state = 1 AND not_before > 0;
CREATE INDEX queue_pending ON queue (pending_deadline)
  WHERE state = 1 AND pending_deadline IS NOT NULL;
CREATE INDEX queue_leased ON queue (worker_id) WHERE worker_id IS NOT NULL;

CREATE TABLE job_counts (state INTEGER PRIMARY KEY, n INTEGER NOT NULL);
INSERT INTO job_counts VALUES (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0);
CREATE TRIGGER count_insert AFTER INSERT ON jobs BEGIN
  UPDATE job_counts SET n = n + 1 WHERE state = new.state;
END;
CREATE TRIGGER count_delete AFTER DELETE ON jobs BEGIN
  UPDATE job_counts SET n = n - 1 WHERE state = old.state;
END;
CREATE TRIGGER count_update AFTER UPDATE OF state ON jobs WHEN old.state <> new.state BEGIN
  UPDATE job_counts SET n = n - 1 WHERE state = old.state;
  UPDATE job_counts SET n = n + 1 WHERE state = new.state;
END;

CREATE TABLE artifacts (
  uid TEXT PRIMARY KEY,
  pk INTEGER NOT NULL UNIQUE REFERENCES jobs ON DELETE CASCADE,
  tenant TEXT NOT NULL,
  uri TEXT NOT NULL,
  manifest_sha256 TEXT NOT NULL,
  total_bytes INTEGER NOT NULL,
  file_count INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  create_time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX artifacts_newest ON artifacts (tenant, create_time DESC, uid DESC);

CREATE TABLE workers (
  worker_id TEXT PRIMARY KEY,
  incarnation TEXT NOT NULL,
  session TEXT NOT NULL UNIQUE,
  info BLOB NOT NULL,
  last_seen INTEGER NOT NULL,
  draining INTEGER NOT NULL DEFAULT 0,
  terminate INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE garbage (
  job_uid TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  create_time INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
)sql";

constexpr const char* kVersion2 = R"sql(
ALTER TABLE workers ADD COLUMN refusal TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN retry_id TEXT NOT NULL DEFAULT '';
CREATE TABLE queue_pause (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  reason TEXT NOT NULL,
  create_time INTEGER NOT NULL
);
CREATE TABLE quotas (
  tenant TEXT PRIMARY KEY,
  max_queued INTEGER NOT NULL,
  max_running INTEGER NOT NULL
) WITHOUT ROWID;
)sql";

constexpr const char* kVersion3 = R"sql(
ALTER TABLE job_payloads ADD COLUMN traceparent TEXT NOT NULL DEFAULT '';
)sql";

// engine_version: of the last claim; of a job that takes another one's result,
// the version it wants. shared_artifact: uid of another job's artifact.
constexpr const char* kVersion4 = R"sql(
ALTER TABLE jobs ADD COLUMN engine_version TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN waits_for INTEGER;
ALTER TABLE jobs ADD COLUMN shared_artifact TEXT;
ALTER TABLE jobs ADD COLUMN result_of TEXT NOT NULL DEFAULT '';
CREATE INDEX jobs_by_digest ON jobs (tenant, spec_digest);
CREATE INDEX jobs_waiting_for ON jobs (waits_for) WHERE waits_for IS NOT NULL;
CREATE INDEX jobs_sharing ON jobs (shared_artifact) WHERE shared_artifact IS NOT NULL;
)sql";

constexpr const char* kVersion5 = R"sql(
CREATE INDEX jobs_ended ON jobs (end_time DESC) WHERE state >= 4;
)sql";

// submits_full_at: see TakeSubmit in rules.h.
constexpr const char* kVersion6 = R"sql(
ALTER TABLE quotas ADD COLUMN max_stored_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE quotas ADD COLUMN max_submits_per_minute INTEGER NOT NULL DEFAULT 0;
ALTER TABLE quotas ADD COLUMN max_watches INTEGER NOT NULL DEFAULT 0;
ALTER TABLE quotas ADD COLUMN submits_full_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX artifacts_bytes ON artifacts (tenant, total_bytes);
)sql";

// What a claim needs to know whose turn it is (sql_turns.h). last_claim: of the
// newest attempt.
constexpr const char* kVersion7 = R"sql(
ALTER TABLE queue ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
UPDATE queue SET tenant = (SELECT tenant FROM jobs j WHERE j.pk = queue.pk);
ALTER TABLE jobs ADD COLUMN last_claim INTEGER;
DROP INDEX queue_claimable;
CREATE INDEX queue_claimable ON queue (tenant, method, gpu_count, rank) WHERE state = 1;
CREATE INDEX queue_running ON queue (tenant, worker_id) WHERE worker_id IS NOT NULL;
CREATE INDEX jobs_claimed ON jobs (tenant, last_claim) WHERE last_claim IS NOT NULL;
)sql";

// When jobs of a tenant that are gone were last claimed (sql_turns.h).
constexpr const char* kVersion8 = R"sql(
CREATE TABLE turns (tenant TEXT PRIMARY KEY, last_claim INTEGER NOT NULL) WITHOUT ROWID;
)sql";

// Step i brings version i to i + 1. Never change a released one: add another.
constexpr const char* kSteps[] = {kVersion1, kVersion2, kVersion3, kVersion4,
                                  kVersion5, kVersion6, kVersion7, kVersion8};
constexpr int kNewest = static_cast<int>(std::size(kSteps));

int64_t UserVersion(Database& db) {
  Rows rows = db.Query("PRAGMA user_version");
  return rows.Next() ? rows.Int(0) : 0;
}

void Apply(Database& db, int version) {
  db.Script("BEGIN IMMEDIATE");
  db.Script(kSteps[version]);
  db.Script("PRAGMA user_version=" + std::to_string(version + 1));
  db.Script("COMMIT");
}

}  // namespace

absl::Status Migrate(Database& db) { return MigrateTo(db, kNewest); }

absl::Status MigrateTo(Database& db, int wanted) {
  int64_t version = UserVersion(db);
  if (version > kNewest) {
    return MakeError(Reason::kStoreUnavailable,
                     "the database has schema " + std::to_string(version) +
                         ", this quantryd knows up to " + std::to_string(kNewest) +
                         "; run a newer quantryd",
                     {{"schema", std::to_string(version)}, {"newest", std::to_string(kNewest)}});
  }
  for (; version < wanted && db.status().ok(); ++version) Apply(db, static_cast<int>(version));
  return db.status();
}

}  // namespace quantry::server::sqlite
