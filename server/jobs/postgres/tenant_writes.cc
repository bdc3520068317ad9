#include "common/errors.h"
#include "server/jobs/postgres/quotas.h"
#include "server/jobs/postgres/tenant_calls.h"
#include "server/jobs/postgres/twins.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_retries.h"
#include "server/jobs/sql_turns.h"

namespace quantry::server::postgres {
namespace {

struct Labels {
  std::string keys;
  std::string values;

  explicit Labels(const std::map<std::string, std::string>& labels) {
    std::vector<std::string> k;
    std::vector<std::string> v;
    for (const auto& [key, value] : labels) {
      k.push_back(key);
      v.push_back(value);
    }
    keys = TextArray(k);
    values = TextArray(v);
  }
};

void InsertLabels(Database& db, int64_t pk, const std::map<std::string, std::string>& labels) {
  if (labels.empty()) return;
  const Labels arrays(labels);
  db.Execute(
      "INSERT INTO job_labels (pk, key, value)"
      " SELECT $1::bigint, * FROM unnest($2::text[], $3::text[])",
      pk, arrays.keys, arrays.values);
}

// What a queue row takes over from its job.
struct Enqueue {
  int64_t pk = 0;
  std::string tenant;
  int priority = 0;
  Time create_time;   // of the job: its age in the queue
  int64_t epoch = 0;  // claims so far
};

void InsertQueueRow(const Context& context, const Enqueue& job, const v1::JobSpec& spec) {
  const std::optional<Duration> max_pending = LimitOf(spec.stop_limits().max_pending());
  std::optional<Time> pending_deadline;
  if (max_pending) pending_deadline = context.now + *max_pending;
  const int max_attempts = spec.retry_policy().max_attempts();
  context.db.Execute(
      "INSERT INTO queue (pk, tenant, state, method, gpu_count, min_gpu_memory, host_memory,"
      " rank, enqueue_time, pending_deadline, max_attempts, max_pending, max_run,"
      " max_no_progress, epoch) VALUES ($1, $2, 1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
      " $13, $14)",
      job.pk, job.tenant, MethodName(spec.method()), GpuCount(spec.resources()),
      spec.resources().min_gpu_memory_bytes(), spec.resources().host_memory_bytes(),
      RankOf(context.policy, job.create_time, job.priority), context.now, pending_deadline,
      max_attempts > 0 ? max_attempts : context.policy.max_attempts, max_pending,
      LimitOf(spec.stop_limits().max_run()),
      LimitOf(spec.stop_limits().max_no_progress()).value_or(context.policy.max_no_progress),
      job.epoch);
}

// Job, payload and labels in one statement; nullopt = another transaction took
// the id or the request_id meanwhile.
std::optional<int64_t> InsertJob(const Context& context, const SubmitRequest& request) {
  std::optional<std::string> request_id;
  if (!request.request_id.empty()) request_id = request.request_id;
  const Labels labels(request.labels);
  Rows rows = context.db.Query(
      "WITH job AS (INSERT INTO jobs (tenant, id, uid, request_id, request_hash, display_name,"
      " method, spec_digest, priority, state, create_time, update_time, expire_time,"
      " engine_version) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 1, $10, $10, $11, $16)"
      " ON CONFLICT DO NOTHING RETURNING pk),"
      " payload AS (INSERT INTO job_payloads (pk, spec, traceparent)"
      " SELECT pk, $12::bytea, $15::text FROM job),"
      " labels AS (INSERT INTO job_labels (pk, key, value)"
      " SELECT pk, l.* FROM job, unnest($13::text[], $14::text[]) l)"
      " SELECT pk FROM job",
      request.key.tenant, request.key.id, request.uid, request_id, request.request_hash,
      request.display_name, MethodName(request.spec.method()), request.spec_digest,
      request.priority, context.now, request.expire_time, request.spec, labels.keys, labels.values,
      request.traceparent, request.reuse_result ? request.engine_version : "");
  if (!rows.Next()) return std::nullopt;
  return rows.Int(0);
}

// The job an earlier call with the same request_id made; or JOB_ID_TAKEN.
absl::StatusOr<std::optional<SubmitResult>> FindEarlier(Database& db,
                                                        const SubmitRequest& request) {
  std::optional<std::string> request_id;
  if (!request.request_id.empty()) request_id = request.request_id;
  Rows rows = db.Query(
      "SELECT 1, pk, request_hash FROM jobs WHERE tenant = $1 AND request_id = $3"
      " UNION ALL SELECT 2, pk, '' FROM jobs WHERE tenant = $1 AND id = $2 ORDER BY 1",
      request.key.tenant, request.key.id, request_id);
  if (!rows.Next()) return std::nullopt;
  if (rows.Int(0) == 2) return JobIdTaken(request.key);
  if (rows.Text(2) != request.request_hash) return RequestIdReused(request.request_id);
  return SubmitResult{ReadJob(db, rows.Int(1)), false};
}

// The job, locked, if it exists and has the etag.
absl::StatusOr<std::pair<int64_t, Job>> Load(Database& db, const JobKey& key,
                                             const std::string& etag) {
  std::optional<int64_t> pk = LockJob(db, key);
  if (!pk) return JobNotFound(key);
  Job job = ReadJob(db, *pk);
  absl::Status match = CheckEtag(job, etag);
  if (!match.ok()) return match;
  return std::pair(*pk, std::move(job));
}

}  // namespace

absl::StatusOr<SubmitResult> Submit(const Context& context, const SubmitRequest& request) {
  Database& db = context.db;
  auto earlier = FindEarlier(db, request);
  if (!earlier.ok()) return earlier.status();
  if (*earlier) return **std::move(earlier);
  if (request.repeat_only) return JobNotFound(request.key);
  const sql::QuotaRow quota = LockQuota(db, request.key.tenant);
  const std::optional<sql::Twin> twin = LockTwin(db, request);
  const bool hit = twin && twin->succeeded;
  absl::Status admitted = hit ? CountSubmit(db, quota, context.now)
                              : AdmitQueued(db, quota, request.upload_bytes, context.now);
  if (!admitted.ok()) return admitted;
  std::optional<int64_t> pk = InsertJob(context, request);
  if (!pk) {
    db.SetError(MakeError(Reason::kStoreUnavailable, "another submit came in between; retry"),
                Failure::kConflict);
    return db.status();
  }
  v1::JobEvent event;
  event.mutable_state_changed()->set_to(v1::JOB_STATE_QUEUED);
  event.mutable_state_changed()->set_reason("submitted");
  AppendEvent(db, *pk, 0, context.now, std::move(event));
  if (hit) {
    absl::Status taken = sql::TakeResult(db, *pk, twin->pk, context.now);
    if (!taken.ok()) return taken;
    return SubmitResult{ReadJob(db, *pk), true, Reuse::kHit};
  }
  InsertQueueRow(context,
                 {.pk = *pk,
                  .tenant = request.key.tenant,
                  .priority = request.priority,
                  .create_time = context.now},
                 request.spec);
  if (twin) sql::WaitFor(db, *pk, *twin, context.now);
  const Reuse missed = request.reuse_result ? Reuse::kMiss : Reuse::kNotAsked;
  return SubmitResult{ReadJob(db, *pk), true, twin ? Reuse::kJoined : missed};
}

absl::StatusOr<Job> Update(const Context& context, const UpdateRequest& request) {
  Database& db = context.db;
  auto loaded = Load(db, request.key, request.etag);
  if (!loaded.ok()) return loaded.status();
  auto& [pk, job] = *loaded;
  if (request.labels) {
    db.Execute("DELETE FROM job_labels WHERE pk = $1", pk);
    InsertLabels(db, pk, *request.labels);
  }
  if (request.priority) {
    db.Execute("UPDATE jobs SET priority = $1 WHERE pk = $2", *request.priority, pk);
    db.Execute("UPDATE queue SET rank = $1 WHERE pk = $2",
               RankOf(context.policy, job.create_time, *request.priority), pk);
  }
  if (request.expire_time) {
    db.Execute("UPDATE jobs SET expire_time = $1 WHERE pk = $2", *request.expire_time, pk);
  }
  db.Execute("UPDATE jobs SET version = version + 1, update_time = $1 WHERE pk = $2", context.now,
             pk);
  return ReadJob(db, pk);
}

absl::StatusOr<Job> Cancel(const Context& context, const CancelRequest& request) {
  auto loaded = Load(context.db, request.key, request.etag);
  if (!loaded.ok()) return loaded.status();
  auto& [pk, job] = *loaded;
  auto target = CancelTarget(job);
  if (!target.ok()) return target.status();
  if (!*target) return job;
  StateChange change{.pk = pk, .from = job.state, .to = **target, .reason = request.reason};
  if (change.reason.empty()) change.reason = "cancelled by the client";
  absl::Status changed = ChangeState(context.db, change, context.now);
  if (!changed.ok()) return changed;
  return ReadJob(context.db, pk);
}

absl::StatusOr<Job> Retry(const Context& context, const RetryRequest& request) {
  Database& db = context.db;
  const std::optional<int64_t> found = FindJob(db, request.key);
  if (!found) return JobNotFound(request.key);
  const int64_t pk = *found;
  const sql::QuotaRow quota = LockQuota(db, request.key.tenant);
  if (!LockEndedJob(db, pk)) return JobNotFound(request.key);
  const Job job = ReadJob(db, pk);
  const std::string retry_ids = sql::RetryIdsOf(db, pk);
  if (sql::IsAmong(retry_ids, request.request_id)) return job;
  if (request.repeat_only) return JobNotFound(request.key);
  if (absl::Status match = CheckEtag(job, request.etag); !match.ok()) return match;
  if (absl::Status status = CheckRetryable(job, retry_ids); !status.ok()) return status;
  absl::Status admitted = AdmitQueued(db, quota, std::nullopt, context.now);
  if (!admitted.ok()) return admitted;
  sql::NoteRetry(db, pk, request.request_id);
  db.Execute("UPDATE job_payloads SET error = NULL WHERE pk = $1", pk);
  db.Execute("DELETE FROM job_losses WHERE pk = $1", pk);
  db.Execute("DELETE FROM job_progress WHERE pk = $1", pk);
  if (request.from_start) db.Execute("DELETE FROM job_checkpoints WHERE pk = $1", pk);
  StateChange change{.pk = pk,
                     .from = job.state,
                     .to = JobState::kQueued,
                     .reason = request.from_start ? "retried from the start" : "retried"};
  if (absl::Status changed = ChangeState(db, change, context.now); !changed.ok()) return changed;
  InsertQueueRow(context,
                 {.pk = pk,
                  .tenant = job.key.tenant,
                  .priority = job.priority,
                  .create_time = job.create_time,
                  .epoch = job.epoch},
                 job.spec);
  return ReadJob(db, pk);
}

void RemoveJob(Database& db, int64_t pk, Time now) {
  sql::KeepTurn(db, pk);
  LeaveArtifact(db, pk, now);
  // Its own folder goes too, unless its artifact is another job's now.
  db.Execute(
      "INSERT INTO garbage (job_uid, tenant, create_time)"
      " SELECT uid, tenant, $1::bigint FROM jobs j WHERE pk = $2"
      " AND NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.uid = j.uid AND a.pk <> j.pk)"
      " ON CONFLICT DO NOTHING",
      now, pk);
  db.Execute("DELETE FROM jobs WHERE pk = $1", pk);
}

absl::StatusOr<Job> Delete(const Context& context, const DeleteRequest& request) {
  auto loaded = Load(context.db, request.key, request.etag);
  if (!loaded.ok()) return loaded.status();
  auto& [pk, job] = *loaded;
  if (!IsEnded(job.state)) return JobNotEnded(job);
  RemoveJob(context.db, pk, context.now);
  return job;
}

}  // namespace quantry::server::postgres
