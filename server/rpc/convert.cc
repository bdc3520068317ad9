#include "server/rpc/convert.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/printable.h"
#include "common/utf8_prefix.h"

namespace quantry::server {
namespace {

// Bounds on what one worker call may carry; beyond them a broken worker would
// fill the database.
constexpr int kMaxEventsPerCall = 1000;
constexpr size_t kMaxLogMessageBytes = 16 << 10;
constexpr int kMaxProgressMetrics = 64;
constexpr size_t kMaxNameBytes = 256;
constexpr int kMaxCheckpointFiles = 10000;

absl::Status OutOfBounds(std::string_view message) {
  return MakeError(Reason::kInvalidArgument, message);
}

using Events = google::protobuf::RepeatedPtrField<v1::JobEvent>;
using Metrics = google::protobuf::Map<std::string, double>;

// Of too many the first by name stay, the same ones each time.
void KeepMetricsInBounds(const std::string& field, Metrics* metrics, Violations* left_out) {
  std::map<std::string, double> kept;
  for (const auto& [name, value] : *metrics) {
    if (name.size() > kMaxNameBytes) {
      left_out->Wanted(field, absl::StrCat("names of at most ", kMaxNameBytes, " bytes"),
                       absl::StrCat(name.size(), " bytes: ", name));
    } else if (!std::isfinite(value)) {
      left_out->Wanted(absl::StrCat(field, "[", name, "]"), "a finite value", absl::StrCat(value));
    } else {
      kept.emplace(name, value);
    }
  }
  if (kept.size() > kMaxProgressMetrics) {
    left_out->Wanted(field, absl::StrCat("at most ", kMaxProgressMetrics, " entries"),
                     absl::StrCat(kept.size()));
    kept.erase(std::next(kept.begin(), kMaxProgressMetrics), kept.end());
  }
  if (kept.size() != metrics->size()) *metrics = Metrics(kept.begin(), kept.end());
}

void KeepEventInBounds(const std::string& field, v1::JobEvent* event, Violations* left_out) {
  switch (event->kind_case()) {
    case v1::JobEvent::KIND_NOT_SET:
      return left_out->Wanted(field, "a kind that workers report", "none that is known here");
    case v1::JobEvent::kStateChanged:
      return left_out->Wanted(field, "a kind that workers report", "state_changed");
    case v1::JobEvent::kProgress:
      return KeepMetricsInBounds(field + ".progress.metrics",
                                 event->mutable_progress()->mutable_metrics(), left_out);
    case v1::JobEvent::kLog:
      event->mutable_log()->set_message(Utf8Prefix(event->log().message(), kMaxLogMessageBytes));
      return;
    default:
      return;
  }
}

AttemptEvents FirstEvents(int64_t offset, const Events& events, int count, Violations* left_out) {
  AttemptEvents result{.offset = offset, .events = {}};
  for (int i = 0; i < count; ++i) {
    result.events.push_back(events[i]);
    KeepEventInBounds(absl::StrCat("events[", i, "]"), &result.events.back(), left_out);
  }
  return result;
}

}  // namespace

google::protobuf::Timestamp ToProto(Time time) {
  google::protobuf::Timestamp proto;
  const std::int64_t micros = ToUnixMicros(time);
  std::int64_t seconds = micros / 1'000'000;
  std::int64_t rest = micros % 1'000'000;
  if (rest < 0) {
    rest += 1'000'000;
    --seconds;
  }
  proto.set_seconds(seconds);
  proto.set_nanos(static_cast<std::int32_t>(rest * 1000));
  return proto;
}

google::protobuf::Duration ToProto(Duration duration) {
  google::protobuf::Duration proto;
  proto.set_seconds(duration.count() / 1'000'000);
  proto.set_nanos(static_cast<std::int32_t>(duration.count() % 1'000'000 * 1000));
  return proto;
}

Duration FromProto(const google::protobuf::Duration& duration) {
  constexpr std::int64_t kMaxSeconds = std::numeric_limits<std::int64_t>::max() / 2'000'000;
  const std::int64_t seconds = std::clamp(duration.seconds(), -kMaxSeconds, kMaxSeconds);
  return std::chrono::seconds(seconds) + std::chrono::microseconds(duration.nanos() / 1000);
}

v1::QuantizationJob ToProto(const Job& job) {
  v1::QuantizationJob proto;
  proto.set_name(FormatJobName(job.key.tenant, job.key.id));
  proto.set_uid(job.uid);
  proto.set_display_name(job.display_name);
  for (const auto& [key, value] : job.labels) (*proto.mutable_labels())[key] = value;
  *proto.mutable_spec() = job.spec;
  proto.set_priority(job.priority);
  proto.set_state(ToProto(job.state));
  proto.set_state_reason(job.state_reason);
  *proto.mutable_progress() = job.progress;
  proto.set_epoch(job.epoch);
  proto.set_worker(job.worker);
  if (job.error.code() != 0) *proto.mutable_error() = job.error;
  if (job.has_artifact) proto.set_artifact(FormatArtifactName(job.key.tenant, job.artifact_uid));
  if (!job.result_of.empty()) proto.set_result_of(FormatJobName(job.key.tenant, job.result_of));
  proto.set_spec_digest(job.spec_digest);
  proto.set_etag(EtagOf(job));
  *proto.mutable_create_time() = ToProto(job.create_time);
  *proto.mutable_update_time() = ToProto(job.update_time);
  if (job.start_time) *proto.mutable_start_time() = ToProto(*job.start_time);
  if (job.end_time) *proto.mutable_end_time() = ToProto(*job.end_time);
  if (job.expire_time) *proto.mutable_expire_time() = ToProto(*job.expire_time);
  proto.set_last_sequence(job.last_sequence);
  if (job.result) {
    *proto.mutable_result() = *job.result;
    if (job.start_time) {
      const std::chrono::duration<double> queued = *job.start_time - job.create_time;
      proto.mutable_result()->mutable_timing()->set_queue_s(queued.count());
    }
  }
  proto.set_user_failures(job.user_failures);
  proto.set_worker_losses(job.worker_losses);
  proto.set_traceparent(job.traceparent);
  return proto;
}

v1::Artifact ToProto(const Artifact& artifact) {
  v1::Artifact proto;
  proto.set_name(FormatArtifactName(artifact.job.tenant, artifact.uid));
  proto.set_job(FormatJobName(artifact.job.tenant, artifact.job.id));
  proto.set_uri(artifact.uri);
  proto.set_manifest_sha256(artifact.manifest_sha256);
  proto.set_total_bytes(artifact.total_bytes);
  proto.set_file_count(artifact.file_count);
  *proto.mutable_create_time() = ToProto(artifact.create_time);
  return proto;
}

v1::WorkerStatus ToProto(const Worker& worker) {
  v1::WorkerStatus proto;
  *proto.mutable_worker() = worker.info;
  *proto.mutable_last_seen_time() = ToProto(worker.last_seen);
  for (const JobKey& job : worker.jobs) proto.add_jobs(FormatJobName(job.tenant, job.id));
  proto.set_draining(worker.draining);
  proto.set_live(worker.live);
  proto.set_refusal(worker.refusal);
  return proto;
}

v1::QueueStats ToProto(const StoreStats& stats) {
  v1::QueueStats proto;
  for (const auto& [state, count] : stats.jobs) {
    (*proto.mutable_jobs())[std::string(JobStateName(state))] = count;
  }
  proto.set_depth(stats.depth);
  if (stats.oldest_queued) *proto.mutable_oldest_queued_time() = ToProto(*stats.oldest_queued);
  proto.set_live_workers(stats.live_workers);
  proto.set_busy_slots(stats.busy_slots);
  proto.set_total_slots(stats.total_slots);
  if (stats.pause) {
    proto.mutable_pause()->set_reason(stats.pause->reason);
    *proto.mutable_pause()->mutable_start_time() = ToProto(stats.pause->since);
  }
  return proto;
}

v1::HeartbeatResponse ToProto(const HeartbeatReply& reply) {
  v1::HeartbeatResponse proto;
  for (const BeatReply& job : reply.jobs) {
    v1::JobDirective& directive = *proto.add_jobs();
    directive.set_job(FormatJobName(job.job.tenant, job.job.id));
    directive.set_epoch(job.epoch);
    directive.set_directive(job.directive);
    *directive.mutable_ttl() = ToProto(job.ttl);
    directive.set_next_event_offset(job.next_event_offset);
    directive.set_job_uid(job.uid);
  }
  proto.set_worker(reply.worker);
  return proto;
}

absl::StatusOr<LeaseToken> LeaseFromProto(const std::string& session, const std::string& job,
                                          int64_t epoch, const std::string& uid) {
  auto name = ParseJobName(job);
  if (!name.ok()) return name.status();
  return LeaseToken{
      .session = session, .job = {name->tenant, name->id}, .epoch = epoch, .uid = uid};
}

absl::StatusOr<Beat> FromProto(const v1::JobBeat& beat, Violations* left_out) {
  auto lease = LeaseFromProto("", beat.job(), beat.epoch(), beat.job_uid());
  if (!lease.ok()) return lease.status();
  Beat result{.job = lease->job,
              .epoch = beat.epoch(),
              .progress = beat.progress(),
              .events = {},
              .uid = beat.job_uid()};
  KeepMetricsInBounds("progress.metrics", result.progress.mutable_metrics(), left_out);
  if (beat.event_offset() < 0) {
    // The answer says where to go on.
    left_out->Wanted("event_offset", "0 or more", absl::StrCat(beat.event_offset()));
    return result;
  }
  if (beat.events_size() > kMaxEventsPerCall) {
    left_out->Wanted("events", absl::StrCat("at most ", kMaxEventsPerCall, " of a call"),
                     absl::StrCat(beat.events_size()));
  }
  result.events = FirstEvents(beat.event_offset(), beat.events(),
                              std::min(beat.events_size(), kMaxEventsPerCall), left_out);
  return result;
}

absl::StatusOr<AttemptEvents> EventsFromProto(int64_t offset, const Events& events,
                                              Violations* left_out) {
  if (offset < 0 || events.size() > kMaxEventsPerCall) {
    return OutOfBounds(absl::StrCat("wanted an event_offset of 0 or more and at most ",
                                    kMaxEventsPerCall, " events, got ", offset, " and ",
                                    events.size()));
  }
  return FirstEvents(offset, events, events.size(), left_out);
}

absl::Status CheckWorkerInfo(const v1::WorkerInfo& worker) {
  if (worker.worker_id().empty() || worker.incarnation().empty()) {
    return OutOfBounds("worker: wanted a worker_id and an incarnation, got nothing");
  }
  if (worker.slots() < 0 || worker.slots() > 1024 || worker.methods_size() > 256 ||
      worker.gpus_size() > 64) {
    return OutOfBounds("worker: wanted 0..1024 slots, at most 256 methods and 64 gpus");
  }
  std::vector<std::pair<const char*, std::string_view>> words = {
      {"worker_id", worker.worker_id()},
      {"incarnation", worker.incarnation()},
      {"version", worker.version()},
      {"engine_version", worker.engine_version()}};
  for (const std::string& method : worker.methods()) words.emplace_back("methods", method);
  for (const v1::Gpu& gpu : worker.gpus()) {
    words.emplace_back("gpus.uuid", gpu.uuid());
    words.emplace_back("gpus.model", gpu.model());
    words.emplace_back("gpus.compute_capability", gpu.compute_capability());
  }
  for (const auto& [field, word] : words) {
    if (word.size() <= kMaxNameBytes && IsPrintable(word)) continue;
    return OutOfBounds(absl::StrCat("worker.", field, ": wanted at most ", kMaxNameBytes,
                                    " bytes of characters that can be shown"));
  }
  return absl::OkStatus();
}

absl::Status CheckCheckpoint(const v1::CheckpointRef& checkpoint) {
  if (checkpoint.uri().empty() || checkpoint.uri().size() > 4096 || checkpoint.blocks_done() < 0 ||
      checkpoint.files_size() > kMaxCheckpointFiles) {
    return OutOfBounds("checkpoint: wanted a uri, blocks_done of 0 or more, at most 10,000 files");
  }
  for (const v1::ArtifactFile& file : checkpoint.files()) {
    if (file.path().empty() || file.path().size() > 1024 || file.size_bytes() < 0 ||
        !IsSha256Hex(file.sha256())) {
      return OutOfBounds("checkpoint.files: wanted path, size and sha256 of each");
    }
  }
  return absl::OkStatus();
}

}  // namespace quantry::server
