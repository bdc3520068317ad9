#include <algorithm>

#include "server/jobs/rules.h"
#include "server/jobs/sql_retries.h"
#include "server/jobs/sql_turns.h"
#include "server/jobs/sqlite/quotas.h"
#include "server/jobs/sqlite/rows.h"
#include "server/jobs/sqlite/tenant_calls.h"
#include "server/jobs/sqlite/twins.h"

namespace quantry::server::sqlite {
namespace {

void InsertLabels(Database& db, int64_t pk, const std::map<std::string, std::string>& labels) {
  for (const auto& [key, value] : labels) {
    db.Execute("INSERT INTO job_labels (pk, key, value) VALUES (?, ?, ?)", pk, key, value);
  }
}

// What a queue row takes over from its job.
struct Enqueue {
  int64_t pk = 0;
  std::string tenant;
  int priority = 0;
  Time create_time;   // of the job: its age in the queue
  int64_t epoch = 0;  // claims so far
};

void InsertQueueRow(Database& db, const JobPolicy& policy, const Enqueue& job,
                    const v1::JobSpec& spec, Time now) {
  std::optional<Duration> max_pending = LimitOf(spec.stop_limits().max_pending());
  std::optional<Time> pending_deadline;
  if (max_pending) pending_deadline = now + *max_pending;
  int max_attempts = spec.retry_policy().max_attempts();
  db.Execute(
      "INSERT INTO queue (pk, tenant, state, method, gpu_count, min_gpu_memory, host_memory, rank,"
      " enqueue_time, pending_deadline, max_attempts, max_pending, max_run, max_no_progress,"
      " epoch) VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
      job.pk, job.tenant, MethodName(spec.method()), GpuCount(spec.resources()),
      spec.resources().min_gpu_memory_bytes(), spec.resources().host_memory_bytes(),
      RankOf(policy, job.create_time, job.priority), now, pending_deadline,
      max_attempts > 0 ? max_attempts : policy.max_attempts, max_pending,
      LimitOf(spec.stop_limits().max_run()),
      LimitOf(spec.stop_limits().max_no_progress()).value_or(policy.max_no_progress), job.epoch);
}

int64_t InsertJob(Database& db, const SubmitRequest& request, Time now) {
  std::optional<std::string> request_id;
  if (!request.request_id.empty()) request_id = request.request_id;
  db.Execute(
      "INSERT INTO jobs (tenant, id, uid, request_id, request_hash, display_name, method,"
      " spec_digest, priority, state, create_time, update_time, expire_time, engine_version)"
      " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 1, ?10, ?10, ?11, ?12)",
      request.key.tenant, request.key.id, request.uid, request_id, request.request_hash,
      request.display_name, MethodName(request.spec.method()), request.spec_digest,
      request.priority, now, request.expire_time,
      request.reuse_result ? request.engine_version : "");
  int64_t pk = db.LastInsertId();
  db.Execute("INSERT INTO job_payloads (pk, spec, traceparent) VALUES (?, ?, ?)", pk, request.spec,
             request.traceparent);
  InsertLabels(db, pk, request.labels);
  v1::JobEvent event;
  event.mutable_state_changed()->set_to(v1::JOB_STATE_QUEUED);
  event.mutable_state_changed()->set_reason("submitted");
  AppendEvent(db, pk, 0, now, std::move(event));
  return pk;
}

// The job an earlier call with the same request_id made.
absl::StatusOr<std::optional<SubmitResult>> FindRepeat(Database& db, const SubmitRequest& request) {
  if (request.request_id.empty()) return std::nullopt;
  int64_t pk = 0;
  {
    Rows rows = db.Query("SELECT pk, request_hash FROM jobs WHERE tenant = ? AND request_id = ?",
                         request.key.tenant, request.request_id);
    if (!rows.Next()) return std::nullopt;
    if (rows.Text(1) != request.request_hash) {
      return RequestIdReused(request.request_id);
    }
    pk = rows.Int(0);
  }
  return SubmitResult{ReadJob(db, pk), false};
}

// The job, if it exists and has the etag.
absl::StatusOr<std::pair<int64_t, Job>> Load(Database& db, const JobKey& key,
                                             const std::string& etag) {
  std::optional<int64_t> pk = FindJob(db, key);
  if (!pk) return JobNotFound(key);
  Job job = ReadJob(db, *pk);
  absl::Status match = CheckEtag(job, etag);
  if (!match.ok()) return match;
  return std::pair(*pk, std::move(job));
}

}  // namespace

absl::StatusOr<SubmitResult> Submit(Database& db, const JobPolicy& policy,
                                    const SubmitRequest& request, Time now) {
  auto repeat = FindRepeat(db, request);
  if (!repeat.ok()) return repeat.status();
  if (*repeat) return **repeat;
  if (request.repeat_only) return JobNotFound(request.key);
  if (FindJob(db, request.key)) return JobIdTaken(request.key);
  const std::optional<sql::Twin> twin = sql::FindTwin(db, request);
  const bool hit = twin && twin->succeeded;
  absl::Status quota = hit ? AdmitEnded(db, request.key.tenant, now)
                           : AdmitQueued(db, request.key.tenant, request.upload_bytes, now);
  if (!quota.ok()) return quota;
  int64_t pk = InsertJob(db, request, now);
  if (hit) {
    if (absl::Status taken = sql::TakeResult(db, pk, twin->pk, now); !taken.ok()) return taken;
    return SubmitResult{ReadJob(db, pk), true, Reuse::kHit};
  }
  InsertQueueRow(
      db, policy,
      {.pk = pk, .tenant = request.key.tenant, .priority = request.priority, .create_time = now},
      request.spec, now);
  if (twin) sql::WaitFor(db, pk, *twin, now);
  const Reuse missed = request.reuse_result ? Reuse::kMiss : Reuse::kNotAsked;
  return SubmitResult{ReadJob(db, pk), true, twin ? Reuse::kJoined : missed};
}

absl::StatusOr<Job> Update(Database& db, const JobPolicy& policy, const UpdateRequest& request,
                           Time now) {
  auto loaded = Load(db, request.key, request.etag);
  if (!loaded.ok()) return loaded.status();
  auto& [pk, job] = *loaded;
  if (request.labels) {
    db.Execute("DELETE FROM job_labels WHERE pk = ?", pk);
    InsertLabels(db, pk, *request.labels);
  }
  if (request.priority) {
    db.Execute("UPDATE jobs SET priority = ? WHERE pk = ?", *request.priority, pk);
    db.Execute("UPDATE queue SET rank = ? WHERE pk = ?",
               RankOf(policy, job.create_time, *request.priority), pk);
  }
  if (request.expire_time) {
    db.Execute("UPDATE jobs SET expire_time = ? WHERE pk = ?", *request.expire_time, pk);
  }
  db.Execute("UPDATE jobs SET version = version + 1, update_time = ? WHERE pk = ?", now, pk);
  return ReadJob(db, pk);
}

absl::StatusOr<Job> Cancel(Database& db, const CancelRequest& request, Time now) {
  auto loaded = Load(db, request.key, request.etag);
  if (!loaded.ok()) return loaded.status();
  auto& [pk, job] = *loaded;
  auto target = CancelTarget(job);
  if (!target.ok()) return target.status();
  if (!*target) return job;
  StateChange change{.pk = pk, .from = job.state, .to = **target, .reason = request.reason};
  if (change.reason.empty()) change.reason = "cancelled by the client";
  absl::Status changed = ChangeState(db, change, now);
  if (!changed.ok()) return changed;
  return ReadJob(db, pk);
}

absl::StatusOr<Job> Retry(Database& db, const JobPolicy& policy, const RetryRequest& request,
                          Time now) {
  auto loaded = Load(db, request.key, "");
  if (!loaded.ok()) return loaded.status();
  auto& [pk, job] = *loaded;
  const std::string retry_ids = sql::RetryIdsOf(db, pk);
  if (sql::IsAmong(retry_ids, request.request_id)) return job;
  if (request.repeat_only) return JobNotFound(request.key);
  if (absl::Status match = CheckEtag(job, request.etag); !match.ok()) return match;
  if (absl::Status status = CheckRetryable(job, retry_ids); !status.ok()) return status;
  absl::Status quota = AdmitQueued(db, job.key.tenant, std::nullopt, now);
  if (!quota.ok()) return quota;
  sql::NoteRetry(db, pk, request.request_id);
  db.Execute("UPDATE job_payloads SET error = NULL WHERE pk = ?", pk);
  db.Execute("DELETE FROM job_losses WHERE pk = ?", pk);
  db.Execute("DELETE FROM job_progress WHERE pk = ?", pk);
  if (request.from_start) db.Execute("DELETE FROM job_checkpoints WHERE pk = ?", pk);
  StateChange change{.pk = pk,
                     .from = job.state,
                     .to = JobState::kQueued,
                     .reason = request.from_start ? "retried from the start" : "retried"};
  if (absl::Status changed = ChangeState(db, change, now); !changed.ok()) return changed;
  InsertQueueRow(db, policy,
                 {.pk = pk,
                  .tenant = job.key.tenant,
                  .priority = job.priority,
                  .create_time = job.create_time,
                  .epoch = job.epoch},
                 job.spec, now);
  return ReadJob(db, pk);
}

void RemoveJob(Database& db, int64_t pk, Time now) {
  sql::KeepTurn(db, pk);
  LeaveArtifact(db, pk, now);
  // Its own folder goes too, unless its artifact is another job's now.
  db.Execute(
      "INSERT OR IGNORE INTO garbage (job_uid, tenant, create_time)"
      " SELECT uid, tenant, ?1 FROM jobs j WHERE pk = ?2"
      " AND NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.uid = j.uid AND a.pk <> j.pk)",
      now, pk);
  db.Execute("DELETE FROM jobs WHERE pk = ?", pk);
}

absl::StatusOr<Job> Delete(Database& db, const DeleteRequest& request, Time now) {
  auto loaded = Load(db, request.key, request.etag);
  if (!loaded.ok()) return loaded.status();
  auto& [pk, job] = *loaded;
  if (!IsEnded(job.state)) return JobNotEnded(job);
  RemoveJob(db, pk, now);
  return job;
}

}  // namespace quantry::server::sqlite
