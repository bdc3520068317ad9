#include "server/jobs/postgres/schema.h"

#include <iterator>
#include <string>

#include "common/errors.h"
#include "server/jobs/postgres/rows.h"
#include "server/jobs/sql_rows.h"

namespace quantry::server::postgres {
namespace {

// Times are microseconds since 1970. States: server/jobs/job.h.
//
// As in SQLite, `queue` and `job_progress` hold what claims and heartbeats
// touch, in small rows with room for HOT updates (fillfactor) and an eager
// vacuum; spec, result and events lie beside them. No index covers a column
// that a heartbeat changes.
//
// The number of jobs in each state is job_counts plus the sum of
// job_count_changes: a transaction only ever adds rows there, so that submits
// and claims do not wait for each other at one counter; the sweep folds them.
constexpr const char* kVersion1 = R"sql(
CREATE TABLE jobs (
  pk BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant TEXT COLLATE "C" NOT NULL,
  id TEXT COLLATE "C" NOT NULL,
  uid TEXT COLLATE "C" NOT NULL UNIQUE,
  request_id TEXT COLLATE "C",
  request_hash TEXT NOT NULL,
  display_name TEXT NOT NULL,
  method TEXT NOT NULL,
  spec_digest TEXT NOT NULL,
  priority INTEGER NOT NULL,
  state SMALLINT NOT NULL CHECK (state BETWEEN 1 AND 6),
  state_reason TEXT NOT NULL DEFAULT '',
  epoch BIGINT NOT NULL DEFAULT 0,
  worker TEXT NOT NULL DEFAULT '',
  version BIGINT NOT NULL DEFAULT 1,
  user_failures INTEGER NOT NULL DEFAULT 0,
  worker_losses INTEGER NOT NULL DEFAULT 0,
  retry_id TEXT NOT NULL DEFAULT '',
  create_time BIGINT NOT NULL,
  update_time BIGINT NOT NULL,
  start_time BIGINT,
  end_time BIGINT,
  expire_time BIGINT,
  UNIQUE (tenant, id),
  CHECK ((state >= 4) = (end_time IS NOT NULL))
) WITH (fillfactor = 85);
CREATE UNIQUE INDEX jobs_by_request ON jobs (tenant, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX jobs_newest ON jobs (tenant, create_time DESC, uid DESC);
CREATE INDEX jobs_by_state ON jobs (tenant, state, create_time DESC, uid DESC);
CREATE INDEX jobs_expiring ON jobs (expire_time) WHERE expire_time IS NOT NULL AND state >= 4;

CREATE TABLE job_payloads (
  pk BIGINT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
  spec BYTEA NOT NULL,
  error BYTEA,
  result BYTEA
);
CREATE TABLE job_labels (
  pk BIGINT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  key TEXT COLLATE "C" NOT NULL,
  value TEXT COLLATE "C" NOT NULL,
  PRIMARY KEY (pk, key)
);
CREATE TABLE job_progress (
  pk BIGINT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
  progress BYTEA NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01);
CREATE TABLE job_checkpoints (
  pk BIGINT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
  epoch BIGINT NOT NULL,
  checkpoint BYTEA NOT NULL
);
CREATE TABLE job_losses (
  pk BIGINT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  worker_id TEXT COLLATE "C" NOT NULL,
  PRIMARY KEY (pk, worker_id)
);
-- The sequence is the column, not in the bytes.
CREATE TABLE job_events (
  pk BIGINT NOT NULL REFERENCES jobs ON DELETE CASCADE,
  seq BIGINT NOT NULL,
  event BYTEA NOT NULL,
  PRIMARY KEY (pk, seq)
);

CREATE TABLE queue (
  pk BIGINT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
  tenant TEXT COLLATE "C" NOT NULL,
  state SMALLINT NOT NULL CHECK (state IN (1, 2, 3)),
  method TEXT COLLATE "C" NOT NULL,
  gpu_count INTEGER NOT NULL,
  min_gpu_memory BIGINT NOT NULL,
  host_memory BIGINT NOT NULL,
  rank BIGINT NOT NULL,
  enqueue_time BIGINT NOT NULL,
  not_before BIGINT NOT NULL DEFAULT 0,
  pending_deadline BIGINT,
  max_attempts INTEGER NOT NULL,
  max_pending BIGINT,
  max_run BIGINT,
  max_no_progress BIGINT NOT NULL,
  run_used BIGINT NOT NULL DEFAULT 0,
  losses_since_checkpoint INTEGER NOT NULL DEFAULT 0,
  epoch BIGINT NOT NULL DEFAULT 0,
  worker_id TEXT COLLATE "C",
  acquire_id TEXT COLLATE "C",
  claim_time BIGINT,
  cancel_time BIGINT,
  lease_until BIGINT,
  steps_done BIGINT NOT NULL DEFAULT 0,
  progress_time BIGINT,
  next_event_offset BIGINT NOT NULL DEFAULT 0,
  CHECK ((state = 1) = (lease_until IS NULL)),
  CHECK ((state = 1) = (worker_id IS NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);
CREATE INDEX queue_claimable ON queue (method, gpu_count, rank, pk) WHERE state = 1;
CREATE INDEX queue_waiting ON queue (enqueue_time) WHERE state = 1;
CREATE INDEX queue_delayed ON queue (not_before) WHERE state = 1 AND not_before > 0;
CREATE INDEX queue_pending ON queue (pending_deadline)
  WHERE state = 1 AND pending_deadline IS NOT NULL;
-- Also makes a repeated acquire_id wait for the first one.
CREATE UNIQUE INDEX queue_leased ON queue (worker_id, acquire_id) WHERE worker_id IS NOT NULL;

CREATE TABLE job_counts (state SMALLINT PRIMARY KEY, n BIGINT NOT NULL);
INSERT INTO job_counts VALUES (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0);
CREATE TABLE job_count_changes (state SMALLINT NOT NULL, n INTEGER NOT NULL);
CREATE FUNCTION quantry_count_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO job_count_changes VALUES (new.state, 1);
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO job_count_changes VALUES (old.state, -1);
  ELSE
    INSERT INTO job_count_changes VALUES (old.state, -1), (new.state, 1);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER count_rows AFTER INSERT OR DELETE ON jobs
  FOR EACH ROW EXECUTE FUNCTION quantry_count_jobs();
CREATE TRIGGER count_states AFTER UPDATE OF state ON jobs
  FOR EACH ROW WHEN (old.state <> new.state) EXECUTE FUNCTION quantry_count_jobs();

CREATE TABLE artifacts (
  uid TEXT COLLATE "C" PRIMARY KEY,
  pk BIGINT NOT NULL UNIQUE REFERENCES jobs ON DELETE CASCADE,
  tenant TEXT COLLATE "C" NOT NULL,
  uri TEXT NOT NULL,
  manifest_sha256 TEXT NOT NULL,
  total_bytes BIGINT NOT NULL,
  file_count INTEGER NOT NULL,
  epoch BIGINT NOT NULL,
  create_time BIGINT NOT NULL
);
CREATE INDEX artifacts_newest ON artifacts (tenant, create_time DESC, uid DESC);

CREATE TABLE workers (
  worker_id TEXT COLLATE "C" PRIMARY KEY,
  incarnation TEXT NOT NULL,
  session TEXT COLLATE "C" NOT NULL UNIQUE,
  info BYTEA NOT NULL,
  last_seen BIGINT NOT NULL,
  draining INTEGER NOT NULL DEFAULT 0,
  terminate INTEGER NOT NULL DEFAULT 0,
  refusal TEXT NOT NULL DEFAULT ''
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01);

CREATE TABLE garbage (
  job_uid TEXT COLLATE "C" PRIMARY KEY,
  tenant TEXT COLLATE "C" NOT NULL,
  create_time BIGINT NOT NULL
);
-- Keys that all servers of the database share.
CREATE TABLE secrets (name TEXT PRIMARY KEY, value BYTEA NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value BIGINT NOT NULL);
CREATE TABLE queue_pause (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  reason TEXT NOT NULL,
  create_time BIGINT NOT NULL
);
CREATE TABLE quotas (
  tenant TEXT COLLATE "C" PRIMARY KEY,
  max_queued BIGINT NOT NULL,
  max_running BIGINT NOT NULL
);
)sql";

constexpr const char* kVersion2 = R"sql(
ALTER TABLE job_payloads ADD COLUMN traceparent TEXT NOT NULL DEFAULT '';
)sql";

// As in SQLite.
constexpr const char* kVersion3 = R"sql(
ALTER TABLE jobs ADD COLUMN engine_version TEXT NOT NULL DEFAULT '',
  ADD COLUMN waits_for BIGINT, ADD COLUMN shared_artifact TEXT COLLATE "C",
  ADD COLUMN result_of TEXT COLLATE "C" NOT NULL DEFAULT '';
CREATE INDEX jobs_by_digest ON jobs (tenant, spec_digest);
CREATE INDEX jobs_waiting_for ON jobs (waits_for) WHERE waits_for IS NOT NULL;
CREATE INDEX jobs_sharing ON jobs (shared_artifact) WHERE shared_artifact IS NOT NULL;
)sql";

constexpr const char* kVersion4 = R"sql(
CREATE INDEX jobs_ended ON jobs (end_time DESC) WHERE state >= 4;
)sql";

// As in SQLite.
constexpr const char* kVersion5 = R"sql(
ALTER TABLE quotas ADD COLUMN max_stored_bytes BIGINT NOT NULL DEFAULT 0,
  ADD COLUMN max_submits_per_minute BIGINT NOT NULL DEFAULT 0,
  ADD COLUMN max_watches BIGINT NOT NULL DEFAULT 0,
  ADD COLUMN submits_full_at BIGINT NOT NULL DEFAULT 0;
CREATE INDEX artifacts_bytes ON artifacts (tenant, total_bytes);
)sql";

// As in SQLite.
constexpr const char* kVersion6 = R"sql(
ALTER TABLE jobs ADD COLUMN last_claim BIGINT;
DROP INDEX queue_claimable;
CREATE INDEX queue_claimable ON queue (tenant, method, gpu_count, rank, pk) WHERE state = 1;
CREATE INDEX queue_running ON queue (tenant) WHERE worker_id IS NOT NULL;
CREATE INDEX jobs_claimed ON jobs (tenant, last_claim) WHERE last_claim IS NOT NULL;
)sql";

// With the condition of queue_leased, PostgreSQL may take this index to find a
// worker's own leases, and then read everybody's.
constexpr const char* kVersion7 = R"sql(
DROP INDEX queue_running;
CREATE INDEX queue_running ON queue (tenant) WHERE state <> 1;
)sql";

// When jobs of a tenant that are gone were last claimed (sql_turns.h).
constexpr const char* kVersion8 = R"sql(
CREATE TABLE turns (tenant TEXT COLLATE "C" PRIMARY KEY, last_claim BIGINT NOT NULL);
)sql";

// Step i brings version i to i + 1. Never change a released one: add another.
constexpr const char* kSteps[] = {kVersion1, kVersion2, kVersion3, kVersion4,
                                  kVersion5, kVersion6, kVersion7, kVersion8};
constexpr int kNewest = static_cast<int>(std::size(kSteps));

int64_t Version(Database& db) {
  Rows rows = db.Query("SELECT version FROM quantry_schema");
  return rows.Next() ? rows.Int(0) : 0;
}

absl::Status Newer(int64_t version) {
  return MakeError(Reason::kStoreUnavailable,
                   "the database has schema " + std::to_string(version) +
                       ", this quantryd knows up to " + std::to_string(kNewest) +
                       "; run a newer quantryd",
                   {{"schema", std::to_string(version)}, {"newest", std::to_string(kNewest)}});
}

absl::Status MigrateLocked(Database& db, int64_t wanted) {
  if (sql::One(db.Query("SELECT (to_regclass('quantry_schema') IS NULL)::int")) != 0) {
    db.Script("CREATE TABLE quantry_schema (version INTEGER NOT NULL)");
  }
  int64_t version = Version(db);
  if (version > kNewest) return Newer(version);
  for (; version < wanted && db.status().ok(); ++version) {
    db.Script("BEGIN");
    db.Script(kSteps[version]);
    db.Script("DELETE FROM quantry_schema; INSERT INTO quantry_schema VALUES (" +
              std::to_string(version + 1) + ")");
    db.Script("COMMIT");
  }
  return db.status();
}

}  // namespace

absl::Status Migrate(Database& db) { return MigrateTo(db, kNewest); }

absl::Status MigrateTo(Database& db, int wanted) {
  // A step may rewrite a large table, and another server's turn takes its time.
  db.Script("SET statement_timeout = 0; SET lock_timeout = 0; SET client_min_messages = warning");
  db.Script(std::string("SELECT pg_advisory_lock(") + kMigrationLock + ")");
  return MigrateLocked(db, wanted);  // the lock ends with the session
}

}  // namespace quantry::server::postgres
