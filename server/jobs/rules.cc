#include "server/jobs/rules.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/errors.h"
#include "common/ids.h"
#include "google/protobuf/util/time_util.h"
#include "server/jobs/transitions.h"

namespace quantry::server {
namespace {

constexpr size_t kMaxLogTailBytes = size_t{16} * 1024;
// How soon a queued job may have started.
constexpr Duration kQuotaRetryAfter = std::chrono::seconds(10);
// Somebody has to delete something first.
constexpr Duration kStoredRetryAfter = std::chrono::seconds(60);
// What the agent calls the bytes it moves, in a job's metrics.
constexpr std::array kByteMetrics = {"fetched_bytes", "restored_bytes", "loaded_bytes",
                                     "uploaded_bytes"};

std::string NameOf(const JobKey& key) { return FormatJobName(key.tenant, key.id); }

std::map<std::string, std::string> NameAndState(const Job& job) {
  return {{"job", NameOf(job.key)}, {"state", std::string(JobStateName(job.state))}};
}

std::string Seconds(Duration duration) { return std::to_string(duration.count() / 1'000'000); }

absl::Status OverLimit(Reason reason, const std::string& what, Duration limit) {
  return MakeError(
      reason, "the job " + what + " for more than the " + Seconds(limit) + " s of its stop_limits",
      {{"limit_s", Seconds(limit)}});
}

// The end of `log`, cut at a character, not inside one.
std::string Tail(const std::string& log) {
  size_t begin = log.size() > kMaxLogTailBytes ? log.size() - kMaxLogTailBytes : 0;
  while (begin > 0 && begin < log.size() &&
         (static_cast<unsigned char>(log[begin]) & 0xC0) == 0x80) {
    ++begin;
  }
  return log.substr(begin);
}

}  // namespace

int64_t RankOf(const JobPolicy& policy, Time create_time, int priority) {
  return ToUnixMicros(create_time) - priority * policy.aging.count();
}

int GpuCount(const v1::ResourceRequest& resources) {
  return std::max(resources.gpu_count(), resources.device().starts_with("cuda") ? 1 : 0);
}

std::optional<Duration> LimitOf(const google::protobuf::Duration& limit) {
  int64_t micros = google::protobuf::util::TimeUtil::DurationToMicroseconds(limit);
  if (micros <= 0) return std::nullopt;
  return Duration(micros);
}

std::vector<std::string> BlobsOf(const v1::JobSpec& spec) {
  std::vector<std::string> blobs;
  for (const v1::BlobFile& file : spec.model().blobs().files()) blobs.push_back(file.sha256());
  for (const v1::TextSource* text : {&spec.calibration().source(), &spec.evaluation().source(),
                                     &spec.preprocessing().source()}) {
    if (text->has_blob()) blobs.push_back(text->blob().sha256());
  }
  return blobs;
}

absl::Status JobNotFound(const JobKey& key) {
  std::string name = NameOf(key);
  return MakeError(Reason::kJobNotFound, "there is no job " + name + "; list the tenant's jobs",
                   {{"job", name}});
}

absl::Status JobIdTaken(const JobKey& key) {
  std::string name = NameOf(key);
  return MakeError(Reason::kJobIdTaken, "there already is a job " + name + "; choose another id",
                   {{"job", name}});
}

absl::Status RequestIdReused(const std::string& request_id) {
  return MakeError(
      Reason::kRequestIdReused,
      "request_id " + request_id + " came before with another payload; use a new request_id",
      {{"request_id", request_id}});
}

absl::Status JobAlreadyEnded(const Job& job) {
  return MakeError(Reason::kJobAlreadyEnded,
                   NameOf(job.key) + " is " + std::string(JobStateName(job.state)) + " already",
                   NameAndState(job));
}

absl::Status JobNotEnded(const Job& job) {
  return MakeError(Reason::kJobNotEnded,
                   NameOf(job.key) + " is " + std::string(JobStateName(job.state)) +
                       "; cancel it and wait for its end, then delete it",
                   NameAndState(job));
}

absl::Status ArtifactNotFound(const std::string& tenant, const std::string& uid) {
  std::string name = FormatArtifactName(tenant, uid);
  return MakeError(Reason::kArtifactNotFound, "there is no artifact " + name + "; list artifacts",
                   {{"artifact", name}});
}

absl::Status QueuedQuotaReached(const std::string& tenant, int64_t limit) {
  const std::string name = FormatTenantName(tenant);
  return MakeDetailedError(Reason::kQuotaQueued,
                           name + " may have " + std::to_string(limit) +
                               " queued jobs and has that many; wait until " +
                               "some have started, or cancel some",
                           {.metadata = {{"tenant", name}, {"max_queued", std::to_string(limit)}},
                            .quotas = {{name, "max_queued " + std::to_string(limit)}},
                            .retry_after = kQuotaRetryAfter});
}

absl::Status CheckStoredBytes(const TenantQuota& quota, int64_t stored, int64_t more) {
  const int64_t limit = quota.max_stored_bytes;
  if (limit == 0 || (more == 0 ? stored < limit : stored <= limit - more)) return absl::OkStatus();
  const std::string name = FormatTenantName(quota.tenant);
  return MakeDetailedError(Reason::kQuotaStoredBytes,
                           name + " may keep " + std::to_string(limit) +
                               " bytes of artifacts and uploads and has " + std::to_string(stored) +
                               (more == 0 ? "" : ", and " + std::to_string(more) + " are to come") +
                               "; delete jobs whose artifacts are not needed, or ask the operator",
                           {.metadata = {{"tenant", name},
                                         {"max_stored_bytes", std::to_string(limit)},
                                         {"stored_bytes", std::to_string(stored)}},
                            .quotas = {{name, "max_stored_bytes " + std::to_string(limit)}},
                            .retry_after = kStoredRetryAfter});
}

absl::StatusOr<Time> TakeSubmit(const TenantQuota& quota, Time full_at, Time now) {
  constexpr Duration kBucket = std::chrono::minutes(1);
  const int64_t rate = quota.max_submits_per_minute;
  // A clock that stepped back owes no more than a whole bucket.
  const Time next = std::clamp(full_at, now, now + kBucket) + kBucket / rate;
  if (next <= now + kBucket) return next;
  const std::string name = FormatTenantName(quota.tenant);
  return MakeDetailedError(
      Reason::kQuotaSubmitRate,
      name + " may submit and retry " + std::to_string(rate) +
          " jobs a minute and has done so; wait as long as RetryInfo says",
      {.metadata = {{"tenant", name}, {"max_submits_per_minute", std::to_string(rate)}},
       .quotas = {{name, "max_submits_per_minute " + std::to_string(rate)}},
       .retry_after = next - (now + kBucket)});
}

absl::Status CheckEtag(const Job& job, const std::string& etag) {
  if (etag.empty() || etag == EtagOf(job)) return absl::OkStatus();
  std::string name = NameOf(job.key);
  return MakeError(
      Reason::kEtagMismatch,
      name + " has etag " + EtagOf(job) + ", not " + etag + "; read it again, then retry",
      {{"job", name}, {"wanted", etag}, {"got", EtagOf(job)}});
}

absl::Status CheckRetryable(const Job& job, std::string_view retry_ids) {
  const std::string name = NameOf(job.key);
  if (!CanTransition(job.state, JobState::kQueued) || job.state == JobState::kRunning) {
    return MakeError(Reason::kJobNotRetryable,
                     name + " is " + std::string(JobStateName(job.state)) +
                         "; only FAILED and CANCELLED jobs can be retried",
                     NameAndState(job));
  }
  if (job.has_artifact) {
    return MakeError(Reason::kJobNotRetryable,
                     name +
                         " has an artifact that failed its quality gate, and another attempt "
                         "gives the same bytes; submit a job with another spec",
                     NameAndState(job));
  }
  if (retry_ids.size() < kMaxRetryIdBytes) return absl::OkStatus();
  return MakeError(Reason::kJobNotRetryable,
                   name +
                       " was retried a thousand times, and a job keeps no more request ids of "
                       "retries; submit another job",
                   NameAndState(job));
}

absl::StatusOr<std::optional<JobState>> CancelTarget(const Job& job) {
  switch (job.state) {
    case JobState::kCancelling:
    case JobState::kCancelled:
      return std::nullopt;
    case JobState::kQueued:
      return JobState::kCancelled;
    case JobState::kRunning:
      return JobState::kCancelling;
    case JobState::kSucceeded:
    case JobState::kFailed:
      break;
  }
  return JobAlreadyEnded(job);
}

absl::Status CheckTransition(const StateChange& change) {
  if (CanTransition(change.from, change.to)) return absl::OkStatus();
  return MakeError(Reason::kInternal, "transition " + std::string(JobStateName(change.from)) +
                                          " -> " + std::string(JobStateName(change.to)) +
                                          " is not in the table");
}

v1::JobEvent EventOf(const StateChange& change) {
  v1::JobEvent event;
  event.mutable_state_changed()->set_from(ToProto(change.from));
  event.mutable_state_changed()->set_to(ToProto(change.to));
  event.mutable_state_changed()->set_reason(change.reason);
  if (change.error) *event.mutable_state_changed()->mutable_error() = *change.error;
  return event;
}

v1::JobEvent InfoEvent(const std::string& message) {
  v1::JobEvent event;
  event.mutable_log()->set_level(v1::LogLine::LEVEL_INFO);
  event.mutable_log()->set_message(message);
  return event;
}

std::string SharesResultOf(const JobKey& source) {
  return "took the result of " + NameOf(source) + ", which has the same spec";
}

v1::JobEvent EventOf(const v1::CheckpointRef& checkpoint) {
  v1::JobEvent event;
  event.mutable_checkpoint()->set_blocks_done(checkpoint.blocks_done());
  int64_t bytes = 0;
  for (const v1::ArtifactFile& file : checkpoint.files()) bytes += file.size_bytes();
  event.mutable_checkpoint()->set_bytes(bytes);
  return event;
}

absl::Status UnknownWorker() {
  return MakeError(Reason::kUnknownWorker, "no worker has this session; register again");
}

absl::Status WorkerNotFound(const std::string& worker_id) {
  return MakeError(Reason::kWorkerNotFound, "there is no worker " + worker_id + "; list workers",
                   {{"worker", worker_id}});
}

absl::Status LeaseLost(const JobKey& key, int64_t epoch, const std::string& why) {
  std::string name = NameOf(key);
  return MakeError(Reason::kLeaseLost,
                   "attempt " + std::to_string(epoch) + " of " + name +
                       " does not own the job any more: " + why +
                       "; stop the engine and forget the job",
                   {{"job", name}, {"epoch", std::to_string(epoch)}, {"why", why}});
}

absl::Status CheckLeaseRow(const LeaseToken& lease, const QueueRow& row,
                           const std::string& worker_id) {
  if (!IsLeased(row.state)) return LeaseLost(lease.job, lease.epoch, "the job is queued again");
  if (row.epoch != lease.epoch) {
    return LeaseLost(lease.job, lease.epoch,
                     "attempt " + std::to_string(row.epoch) + " is running");
  }
  if (row.worker_id != worker_id) {
    return LeaseLost(lease.job, lease.epoch, "worker " + row.worker_id + " runs it");
  }
  return absl::OkStatus();
}

bool MovesFiles(const v1::JobProgress& progress) {
  return progress.stage() == v1::STAGE_FETCHING || progress.stage() == v1::STAGE_LOADING ||
         progress.stage() == v1::STAGE_UPLOADING;
}

bool BytesMoved(const v1::JobProgress& before, const v1::JobProgress& now) {
  // Another try counts from 0 again: any difference is bytes that moved.
  return std::any_of(kByteMetrics.begin(), kByteMetrics.end(), [&](const std::string& name) {
    const auto was = before.metrics().find(name);
    const auto is = now.metrics().find(name);
    return is != now.metrics().end() &&
           (was == before.metrics().end() || was->second != is->second);
  });
}

v1::Directive DirectiveFor(const QueueRow& row, const WorkerRow& worker) {
  if (row.state == JobState::kCancelling) return v1::DIRECTIVE_CANCEL;
  if (worker.draining && worker.terminate) return v1::DIRECTIVE_CHECKPOINT_AND_RELEASE;
  return v1::DIRECTIVE_CONTINUE;
}

v1::WorkerDirective DirectiveFor(const WorkerRow& worker) {
  if (!worker.draining) return v1::WORKER_DIRECTIVE_NONE;
  return worker.terminate ? v1::WORKER_DIRECTIVE_TERMINATE : v1::WORKER_DIRECTIVE_QUIET;
}

Worker WorkerOf(const WorkerRow& row, const JobPolicy& policy, Time now) {
  Worker worker;
  worker.info = row.info;
  worker.session = row.session;
  worker.last_seen = row.last_seen;
  worker.draining = row.draining;
  worker.terminate = row.terminate;
  worker.refusal = row.refusal;
  worker.live = row.last_seen + policy.lease_ttl > now;
  return worker;
}

bool IsWorkersOwn(const v1::JobEvent& event) {
  return event.kind_case() != v1::JobEvent::KIND_NOT_SET &&
         event.kind_case() != v1::JobEvent::kStateChanged;
}

std::vector<v1::JobEvent> NewEvents(int64_t known, const AttemptEvents& events) {
  if (events.offset < 0 || events.offset > known) return {};
  const auto have = static_cast<size_t>(known - events.offset);
  if (have >= events.events.size()) return {};
  return {events.events.begin() + static_cast<std::ptrdiff_t>(have), events.events.end()};
}

v1::JobEvent LogTailEvent(const std::string& log) {
  v1::JobEvent event;
  event.mutable_log()->set_level(v1::LogLine::LEVEL_ERROR);
  event.mutable_log()->set_message(Tail(log));
  return event;
}

absl::Status ErrorOf(const FailRequest& request) {
  const v1::EngineError& error = request.error;
  std::map<std::string, std::string> metadata(error.metadata().begin(), error.metadata().end());
  if (request.exit_code != 0) metadata["exit_code"] = std::to_string(request.exit_code);
  if (request.exit_signal != 0) metadata["exit_signal"] = std::to_string(request.exit_signal);
  return MakeNamedError(error.reason(), error.message(), std::move(metadata));
}

absl::Status GateFailed(const v1::QualityGate& gate, const v1::Perplexity& measured) {
  std::map<std::string, std::string> metadata;
  std::vector<std::string> compared;
  const auto compare = [&](const std::string& what, double most, double got) {
    if (most <= 0) return;
    metadata["wanted_" + what] = absl::StrCat(most);
    metadata["got_" + what] = absl::StrCat(got);
    compared.push_back(absl::StrCat("a perplexity ", what, " of at most ", most, ", got ", got));
  };
  compare("ratio", gate.max_perplexity_ratio(), measured.quantized() / measured.dense());
  compare("increase", gate.max_perplexity_increase(), measured.quantized() - measured.dense());
  return MakeError(
      Reason::kQualityGateFailed,
      absl::StrCat("the quality gate wanted ", absl::StrJoin(compared, "; "), " (dense ",
                   measured.dense(), ", quantized ", measured.quantized(),
                   "); the artifact is kept, marked: loosen the gate or use more bits"),
      metadata);
}

absl::Status WorkerLost(const QueueRow& row, const std::string& why) {
  return MakeError(Reason::kWorkerLost, "worker " + row.worker_id + " " + why,
                   {{"worker", row.worker_id}, {"why", why}});
}

bool IsPoison(const JobPolicy& policy, int64_t distinct_workers, int losses) {
  return distinct_workers >= policy.max_distinct_losses ||
         losses >= policy.max_losses_without_checkpoint;
}

absl::Status Poisoned(const QueueRow& row, int64_t distinct_workers, int losses) {
  return MakeError(Reason::kPoisonJob,
                   std::to_string(losses) + " workers in a row (" +
                       std::to_string(distinct_workers) + " different ones, the last was " +
                       row.worker_id +
                       ") vanished while they ran this job; look at their logs before you "
                       "submit it again",
                   {{"losses", std::to_string(losses)},
                    {"distinct_workers", std::to_string(distinct_workers)},
                    {"worker", row.worker_id}});
}

absl::Status MaxPendingExceeded(const QueueRow& row) {
  return OverLimit(Reason::kMaxPendingExceeded, "was queued", row.max_pending);
}

absl::Status MaxRunExceeded(const QueueRow& row) {
  return OverLimit(Reason::kMaxRunExceeded, "ran", row.max_run);
}

absl::Status NoProgress(const QueueRow& row) {
  return MakeError(Reason::kNoProgress,
                   "step " + std::to_string(row.steps_done) + " on worker " + row.worker_id +
                       " is the last for more than " + Seconds(row.max_no_progress) +
                       " s, and no bytes were fetched, loaded or uploaded; raise "
                       "stop_limits.max_no_progress if such steps are to be expected",
                   {{"steps_done", std::to_string(row.steps_done)},
                    {"worker", row.worker_id},
                    {"limit_s", Seconds(row.max_no_progress)}});
}

Verdict JudgeLease(const QueueRow& row, const JobPolicy& policy, Time now) {
  if (row.lease_until <= now) return Verdict::kLapsed;
  if (row.state == JobState::kCancelling) {
    return row.cancel_time + policy.cancel_grace > now ? Verdict::kFine : Verdict::kCancelIgnored;
  }
  if (row.max_run > Duration(0) && now - row.claim_time + row.run_used >= row.max_run) {
    return Verdict::kMaxRun;
  }
  return row.progress_time + row.max_no_progress <= now ? Verdict::kNoProgress : Verdict::kFine;
}

}  // namespace quantry::server
