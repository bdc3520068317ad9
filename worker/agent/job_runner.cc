#include "worker/agent/job_runner.h"

#include <filesystem>

#include "common/engine_error.h"
#include "common/errors.h"
#include "common/log.h"
#include "common/trace_context.h"
#include "google/protobuf/util/time_util.h"
#include "worker/agent/artifact_uploader.h"
#include "worker/agent/failure.h"
#include "worker/agent/job_series.h"
#include "worker/agent/name_attempt.h"
#include "worker/agent/path_scrubber.h"
#include "worker/agent/utf8.h"

namespace quantry::agent {
namespace {

using google::protobuf::util::TimeUtil;
using std::chrono::steady_clock;

// A released job may wait this long for its last checkpoint to be committed.
constexpr std::chrono::seconds kFlushTime{15};

// The agent's own stages beside those the engine has measured.
void AddStageSeconds(const v1::JobProgress& progress, v1::Timing& timing) {
  for (const v1::StageTime& time : progress.stage_times()) {
    const std::string name = v1::Stage_Name(time.stage());
    if (!time.has_end_time() || timing.stages_s().contains(name)) continue;
    const auto spent = time.end_time() - time.start_time();
    (*timing.mutable_stages_s())[name] =
        static_cast<double>(TimeUtil::DurationToMicroseconds(spent)) / 1e6;
  }
}

// For the log: messages of engines may go on for pages.
std::string FirstLine(const std::string& text) {
  return text.substr(0, std::min<std::size_t>(text.find('\n'), 500));
}

// This machine's disk, not where artifacts go.
bool IsFullHere(const v1::EngineError& error) {
  return error.reason() == ReasonName(Reason::kDiskFull) &&
         !error.metadata().contains("output_uri");
}

}  // namespace

struct JobRunner::Attempt {
  Attempt(const v1::Lease& the_lease, MonotonicTime granted)
      : lease(the_lease),
        session(std::make_shared<JobSession>(the_lease, granted)),
        method(MethodName(the_lease.spec().method())) {}

  // A transfer check that stops with the attempt and counts what moved.
  TransferCheck Counter(const char* metric, std::function<void(std::int64_t)> count) {
    return [this, metric, count = std::move(count),
            moved = std::int64_t{0}](std::int64_t bytes) mutable {
      moved += bytes;
      count(bytes);
      session->SetMetric(metric, static_cast<double>(moved));
      return session->CheckRunning();
    };
  }

  // For the steps that need a store.
  Patience PatienceOf(const Parts& parts) {
    return Patience(
        parts.patience, [this] { return session->CheckRunning(); },
        [this, &parts](const std::string& what) {
          session->AddLog(v1::LogLine::LEVEL_WARNING, Clean(what, parts.work_dir));
          log::Warning(
              "store does not answer",
              {{"job", lease.job()}, {"epoch", lease.epoch()}, {"error", FirstLine(what)}});
        });
  }

  // For texts that go to the job's owner.
  std::string Clean(std::string_view text, const WorkDir& work_dir) const {
    return ToValidUtf8(PathScrubber(work_dir.path(), dir, lease).Scrub(text));
  }

  StopReason stop_reason() const { return session->stop_reason(steady_clock::now()); }

  const v1::Lease& lease;
  std::shared_ptr<JobSession> session;
  std::string method;
  AttemptDir dir;
  EngineOutcome outcome;
  bool engine_failed = false;  // by itself: outcome.error says why
  bool ended = false;          // as far as this worker knows, nobody runs the job again
};

void JobRunner::Run(const v1::Lease& lease, MonotonicTime granted) {
  const log::TraceScope trace(TraceIdOf(lease.traceparent()));
  Attempt attempt(lease, granted);
  log::Info("job started", {{"job", lease.job()},
                            {"epoch", lease.epoch()},
                            {"method", attempt.method},
                            {"resume_blocks", lease.resume().blocks_done()}});
  parts_.keeper.Add(attempt.session);
  parts_.metrics.JobStarted(lease, attempt.session);
  const absl::Status status = Execute(attempt);
  Finish(attempt, status);
  parts_.keeper.Remove(attempt.session);
  parts_.metrics.JobEnded(*attempt.session);
  // Who may get the job again keeps its checkpoint; who ended it does not.
  if (!attempt.dir.root.empty()) {
    parts_.work_dir.RemoveAttempt(attempt.dir, /*keep_checkpoint=*/!attempt.ended);
  }
}

absl::Status JobRunner::Execute(Attempt& attempt) {
  attempt.session->EnterStage(v1::STAGE_FETCHING);
  auto dir = parts_.work_dir.CreateAttempt(attempt.lease.job_uid(), attempt.lease.epoch());
  if (!dir.ok()) return dir.status();
  attempt.dir = *std::move(dir);
  JobInputs inputs;
  const auto stopped = [&] { return attempt.stop_reason() != StopReason::kNone; };
  // A lease that came as a drain began is given back before its model is fetched.
  if (stopped()) return absl::CancelledError("told to stop");
  if (auto status = Prepare(attempt, &inputs); !status.ok()) return status;
  if (stopped()) return absl::CancelledError("told to stop");
  const v1::EngineJob job = MakeEngineJob(attempt.lease, inputs, attempt.dir, parts_.defaults);
  const auto json = EngineJobJson(job);
  if (!json.ok()) return json.status();
  auto folder = OpenStorage(attempt.dir.root);
  if (!folder.ok()) return folder.status();
  if (auto status = (*folder)->Write("job.json", *json); !status.ok()) return status;
  if (const auto& account = parts_.engine.confinement().account) {
    if (auto status = HandOver(attempt.dir, *account); !status.ok()) return status;
  }
  {
    CheckpointUploader uploader(attempt.lease, attempt.dir, parts_.client, *attempt.session,
                                [this](std::int64_t bytes) {
                                  parts_.metrics.BytesUploaded(bytes);
                                  return absl::OkStatus();
                                });
    if (auto status = RunEngine(attempt, InputsOf(job, inputs.folders), uploader); !status.ok())
      return status;
  }
  return Commit(attempt);
}

absl::Status JobRunner::Prepare(Attempt& attempt, JobInputs* inputs) {
  const auto check = attempt.Counter(
      "fetched_bytes", [this](std::int64_t bytes) { parts_.metrics.BytesFetched(bytes); });
  Patience patience = attempt.PatienceOf(parts_);
  const auto fetch = [&] {
    auto fetched = parts_.materializer.Materialize(attempt.lease, attempt.dir, check);
    if (!fetched.ok()) return fetched.status();
    *inputs = *std::move(fetched);
    return absl::OkStatus();
  };
  if (auto status = patience.Try(fetch); !status.ok()) return status;
  if (!inputs->note.empty()) attempt.session->AddLog(v1::LogLine::LEVEL_INFO, inputs->note);
  return patience.Try([&] { return Restore(attempt); });
}

absl::Status JobRunner::Restore(Attempt& attempt) {
  const auto check = attempt.Counter(
      "restored_bytes", [this](std::int64_t bytes) { parts_.metrics.BytesFetched(bytes); });
  const auto status = RestoreCheckpoint(attempt.lease, attempt.dir, check);
  if (absl::IsDataLoss(status) || absl::IsNotFound(status)) {
    // Better late than never: the job starts over.
    attempt.session->AddLog(
        v1::LogLine::LEVEL_WARNING,
        attempt.Clean("checkpoint cannot be used, starting over: " + std::string(status.message()),
                      parts_.work_dir));
    std::error_code ignored;
    std::filesystem::remove_all(attempt.dir.checkpoint(), ignored);
    std::filesystem::create_directories(attempt.dir.checkpoint(), ignored);
  } else if (!status.ok()) {
    return status;
  }
  parts_.work_dir.RemoveEarlierAttempts(attempt.dir);
  return absl::OkStatus();
}

void JobRunner::OnEngineEvent(Attempt& attempt, CheckpointUploader& uploader,
                              const v1::EngineEvent& event) {
  JobSession& session = *attempt.session;
  switch (event.kind_case()) {
    case v1::EngineEvent::kStarted: {
      v1::JobProgress progress = session.progress();
      progress.set_blocks_total(event.started().blocks_total());
      progress.set_blocks_done(event.started().resumed_blocks());
      session.MergeProgress(progress);
      log::Info("engine started", {{"job", session.job()},
                                   {"epoch", session.epoch()},
                                   {"device", event.started().device()},
                                   {"blocks", event.started().blocks_total()},
                                   {"resumed", event.started().resumed_blocks()}});
      break;
    }
    case v1::EngineEvent::kStage:
      session.EnterStage(event.stage());
      break;
    case v1::EngineEvent::kProgress:
      session.MergeProgress(event.progress());
      if (event.progress().stage() != v1::STAGE_UNSPECIFIED) {
        session.EnterStage(event.progress().stage());
      }
      break;
    case v1::EngineEvent::kBlockDone:
      parts_.metrics.BlockDone(attempt.method, session.stage(), event.block_done().seconds());
      session.AddBlock(event.block_done());
      log::Info("block done", {{"job", session.job()},
                               {"epoch", session.epoch()},
                               {"block", event.block_done().index()},
                               {"loss_rtn", event.block_done().loss_rtn()},
                               {"loss", event.block_done().loss_final()},
                               {"seconds", event.block_done().seconds()}});
      break;
    case v1::EngineEvent::kCheckpoint:
      uploader.Offer(event.checkpoint());
      break;
    case v1::EngineEvent::kLog:
      session.AddLog(event.log().level(), attempt.Clean(event.log().message(), parts_.work_dir));
      break;
    default:  // completed, error: the runner's; others: a newer engine's
      break;
  }
}

absl::Status JobRunner::RunEngine(Attempt& attempt, EngineAccess access,
                                  CheckpointUploader& uploader) {
  access.read.push_back(attempt.dir.job_file());
  access.write = {attempt.dir.output(), attempt.dir.checkpoint()};
  attempt.outcome = parts_.engine.Run(
      attempt.dir.job_file(), attempt.dir.root, access, *attempt.session,
      [&](const v1::EngineEvent& event) { OnEngineEvent(attempt, uploader, event); });
  const EngineOutcome& outcome = attempt.outcome;
  parts_.metrics.EngineExited(outcome.exit_signal);
  log::Info("engine ended", {{"job", attempt.session->job()},
                             {"epoch", attempt.session->epoch()},
                             {"exit_code", outcome.exit_code},
                             {"signal", outcome.exit_signal}});
  switch (outcome.kind) {
    case EngineOutcome::Kind::kCompleted:
      return absl::OkStatus();
    case EngineOutcome::Kind::kStopped:
      if (attempt.stop_reason() <= StopReason::kReleaseNow) uploader.Flush(kFlushTime);
      return absl::CancelledError("the engine was stopped");
    case EngineOutcome::Kind::kFailed:
      break;
  }
  attempt.engine_failed = true;
  // The next attempt goes on from here, so let the last block be kept.
  if (IsRetryable(outcome.error)) uploader.Flush(kFlushTime);
  return absl::UnknownError(outcome.error.message());
}

// What the last call cannot take goes ahead, as long as beats are answered.
v1::JobBeat JobRunner::LastBeat(Attempt& attempt) {
  constexpr int kMostBeats = 16;
  for (int i = 0; i < kMostBeats && attempt.session->HasMoreThanLastBeat(); ++i) {
    if (!parts_.keeper.BeatOnce()) break;
  }
  return attempt.session->MakeLastBeat();
}

absl::Status JobRunner::Commit(Attempt& attempt) {
  attempt.session->EnterStage(v1::STAGE_UPLOADING);
  Patience patience = attempt.PatienceOf(parts_);
  auto request = UploadArtifact(
      attempt.lease, attempt.dir.output(), attempt.outcome.completed,
      attempt.Counter("uploaded_bytes",
                      [this](std::int64_t bytes) { parts_.metrics.BytesUploaded(bytes); }),
      patience);
  if (!request.ok()) return request.status();
  attempt.session->MarkDone();
  attempt.session->EnterStage(v1::STAGE_COMMITTING);
  AddStageSeconds(attempt.session->progress(), *request->mutable_result()->mutable_timing());
  // CompleteJob carries events but no progress: the last word on it goes ahead.
  parts_.keeper.BeatOnce();
  const v1::JobBeat last = LastBeat(attempt);
  request->set_event_offset(last.event_offset());
  *request->mutable_events() = last.events();
  // Only losing the lease ends the tries: the artifact is complete.
  const auto status = parts_.client.Complete(
      *request, [&attempt] { return attempt.stop_reason() != StopReason::kLost; });
  if (!status.ok()) return status;
  RemoveStoredCheckpoints(attempt.lease);
  log::Info("job committed", {{"job", attempt.lease.job()},
                              {"epoch", attempt.lease.epoch()},
                              {"bytes", request->total_bytes()},
                              {"files", request->file_count()}});
  return absl::OkStatus();
}

void JobRunner::Finish(Attempt& attempt, const absl::Status& status) {
  attempt.ended = status.ok();
  if (status.ok()) return;
  if (HasReason(status, Reason::kLeaseLost)) attempt.session->Stop(StopReason::kLost);
  switch (attempt.stop_reason()) {
    case StopReason::kLost:
      log::Warning("lease lost; job dropped",
                   {{"job", attempt.lease.job()}, {"epoch", attempt.lease.epoch()}});
      return;
    case StopReason::kCancel:
      return Fail(attempt, status, /*cancelled=*/true);
    case StopReason::kRelease:
    case StopReason::kReleaseNow:
      // A failure that came by itself is told, even while shutting down.
      if (absl::IsCancelled(status)) return Release(attempt);
      return Fail(attempt, status, /*cancelled=*/false);
    case StopReason::kNone:
      return Fail(attempt, status, /*cancelled=*/false);
  }
}

void JobRunner::Fail(Attempt& attempt, const absl::Status& status, bool cancelled) {
  v1::FailJobRequest request;
  NameAttempt(attempt.lease, &request);
  request.set_cancelled(cancelled);
  request.set_exit_code(attempt.outcome.exit_code);
  request.set_exit_signal(attempt.outcome.exit_signal);
  request.set_log_tail(BoundedLogTail(attempt.Clean(attempt.outcome.log_tail, parts_.work_dir)));
  v1::EngineError error = attempt.engine_failed ? attempt.outcome.error : ToEngineError(status);
  log::Warning(cancelled ? "job cancelled" : "job failed", {{"job", attempt.lease.job()},
                                                            {"epoch", attempt.lease.epoch()},
                                                            {"reason", error.reason()},
                                                            {"error", FirstLine(error.message())}});
  error.set_message(attempt.Clean(error.message(), parts_.work_dir));
  for (auto& [key, value] : *error.mutable_metadata()) {
    value = attempt.Clean(value, parts_.work_dir);
  }
  request.set_retryable(!cancelled && IsRetryable(error));
  if (!cancelled) *request.mutable_error() = Bounded(std::move(error));
  // The next attempt, here or of another job, finds all the room that there can be.
  if (IsFullHere(request.error())) parts_.free_disk();
  const v1::JobBeat last = LastBeat(attempt);
  request.set_event_offset(last.event_offset());
  *request.mutable_events() = last.events();
  const auto answer = parts_.client.Fail(
      request, [&attempt] { return attempt.stop_reason() != StopReason::kLost; });
  attempt.ended = answer.ok() && answer->state() != v1::JOB_STATE_QUEUED;
  log::Info("failure told", {{"job", attempt.lease.job()},
                             {"epoch", attempt.lease.epoch()},
                             {"answer", answer.ok() ? v1::JobState_Name(answer->state())
                                                    : answer.status().ToString()}});
}

void JobRunner::Release(Attempt& attempt) {
  v1::ReleaseJobRequest request;
  NameAttempt(attempt.lease, &request);
  request.set_reason("the worker stops");
  const auto status = parts_.client.Release(
      request, [&attempt] { return attempt.stop_reason() != StopReason::kLost; });
  log::Info("job released", {{"job", attempt.lease.job()},
                             {"epoch", attempt.lease.epoch()},
                             {"answer", status.ToString()}});
}

}  // namespace quantry::agent
