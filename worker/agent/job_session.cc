#include "worker/agent/job_session.h"

#include <algorithm>
#include <cmath>

#include "common/utf8_prefix.h"
#include "google/protobuf/util/time_util.h"
#include "worker/agent/name_attempt.h"

namespace quantry::agent {
namespace {

using google::protobuf::util::TimeUtil;

constexpr std::size_t kMaxLogBytes = 4096;
constexpr int kMaxLogLines = 1000;
constexpr std::size_t kMaxMetrics = 64;
// Below the server's 256: the progress of 256 jobs fits into one call.
constexpr std::size_t kMaxMetricName = 64;

MonotonicTime::duration ToDuration(const google::protobuf::Duration& duration) {
  return std::chrono::nanoseconds(TimeUtil::DurationToNanoseconds(duration));
}

v1::StageTime* FindStage(v1::JobProgress& progress, v1::Stage stage) {
  for (auto& time : *progress.mutable_stage_times()) {
    if (time.stage() == stage) return &time;
  }
  return nullptr;
}

using Metrics = google::protobuf::Map<std::string, double>;

void AddMetric(const std::string& name, double value, Metrics* metrics) {
  if (!std::isfinite(value) || name.size() > kMaxMetricName) return;
  if (metrics->size() >= kMaxMetrics && !metrics->contains(name)) return;
  (*metrics)[name] = value;
}

}  // namespace

JobSession::JobSession(const v1::Lease& lease, MonotonicTime granted)
    : job_(lease.job()),
      job_uid_(lease.job_uid()),
      epoch_(lease.epoch()),
      margin_(std::min<MonotonicTime::duration>(ToDuration(lease.ttl()) / 5, kMaxMargin)),
      ttl_(ToDuration(lease.ttl())),
      confirmed_end_(granted + ttl_),
      lease_end_(confirmed_end_) {}

void JobSession::SetWake(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
}

void JobSession::Wake() {
  std::function<void()> wake;
  {
    const std::lock_guard lock(mutex_);
    wake = wake_;
  }
  if (wake) wake();
}

v1::JobEvent JobSession::NewEvent() const {
  v1::JobEvent event;
  *event.mutable_time() = TimeUtil::GetCurrentTime();
  event.set_epoch(epoch_);
  return event;
}

void JobSession::Push(v1::JobEvent event) {
  const std::size_t bytes = event.ByteSizeLong();
  if (pending_bytes_ + bytes > kMaxPendingBytes) return;
  pending_bytes_ += bytes;
  events_.push_back(std::move(event));
}

void JobSession::CloseStage() {
  if (auto* time = FindStage(progress_, progress_.stage())) {
    *time->mutable_end_time() = TimeUtil::GetCurrentTime();
  }
}

void JobSession::EnterStage(v1::Stage stage) {
  {
    const std::lock_guard lock(mutex_);
    if (progress_.stage() == stage) return;
    CloseStage();
    progress_.set_stage(stage);
    // A stage entered again keeps its first start: one row a stage.
    if (auto* time = FindStage(progress_, stage)) {
      time->clear_end_time();
    } else {
      auto* added = progress_.add_stage_times();
      added->set_stage(stage);
      *added->mutable_start_time() = TimeUtil::GetCurrentTime();
    }
    auto event = NewEvent();
    event.mutable_stage_changed()->set_stage(stage);
    Push(std::move(event));
    progress_changed_ = true;
  }
  Wake();
}

void JobSession::AddBlock(const v1::BlockReport& block) {
  {
    const std::lock_guard lock(mutex_);
    auto event = NewEvent();
    *event.mutable_block_done() = block;
    if (event.ByteSizeLong() > kMaxEventBytes) event.mutable_block_done()->clear_metrics();
    Push(std::move(event));
  }
  Wake();
}

void JobSession::AddLog(v1::LogLine::Level level, const std::string& message) {
  {
    const std::lock_guard lock(mutex_);
    if (log_lines_ >= kMaxLogLines) return;
    ++log_lines_;
    auto event = NewEvent();
    event.mutable_log()->set_level(level);
    event.mutable_log()->set_message(log_lines_ == kMaxLogLines
                                         ? "too many log lines; the rest is dropped"
                                         : Utf8Prefix(message, kMaxLogBytes));
    Push(std::move(event));
  }
  Wake();
}

void JobSession::MergeProgress(const v1::JobProgress& progress) {
  const std::lock_guard lock(mutex_);
  v1::JobProgress merged = progress;
  merged.set_stage(progress_.stage());
  *merged.mutable_stage_times() = progress_.stage_times();
  const double ratio = std::isfinite(progress.ratio()) ? progress.ratio() : 0;
  merged.set_ratio(std::clamp(std::max(ratio, progress_.ratio()), 0.0, 1.0));
  merged.set_steps_done(std::max(progress.steps_done(), progress_.steps_done()));
  merged.clear_metrics();
  for (const auto& [name, value] : progress.metrics()) {
    AddMetric(name, value, merged.mutable_metrics());
  }
  for (const auto& [name, value] : progress_.metrics()) {
    if (!progress.metrics().contains(name)) AddMetric(name, value, merged.mutable_metrics());
  }
  progress_ = std::move(merged);
  progress_changed_ = true;
}

void JobSession::MarkDone() {
  const std::lock_guard lock(mutex_);
  progress_.set_ratio(1);
  progress_.set_steps_done(std::max(progress_.steps_done(), progress_.steps_total()));
  progress_.clear_eta();
  progress_changed_ = true;
}

void JobSession::SetMetric(const std::string& name, double value) {
  const std::lock_guard lock(mutex_);
  AddMetric(name, value, progress_.mutable_metrics());
  progress_changed_ = true;
}

v1::Stage JobSession::stage() const {
  const std::lock_guard lock(mutex_);
  return progress_.stage();
}

v1::JobProgress JobSession::progress() const {
  const std::lock_guard lock(mutex_);
  return progress_;
}

bool JobSession::HasEvents() const {
  const std::lock_guard lock(mutex_);
  return !events_.empty();
}

bool JobSession::HasNews() const {
  const std::lock_guard lock(mutex_);
  return !events_.empty() || progress_changed_;
}

std::size_t JobSession::Fitting(std::size_t events, std::size_t bytes) const {
  std::size_t count = 0;
  std::size_t used = 0;
  for (const v1::JobEvent& event : events_) {
    used += event.ByteSizeLong();
    if (count == events || used > bytes) break;
    ++count;
  }
  return count;
}

void JobSession::AddEvents(std::size_t events, std::size_t bytes, v1::JobBeat* beat) const {
  beat->set_event_offset(first_event_);
  const std::size_t count = Fitting(events, bytes);
  for (std::size_t i = 0; i < count; ++i) *beat->add_events() = events_[i];
}

v1::JobBeat JobSession::MakeBeat(std::size_t room) {
  const std::lock_guard lock(mutex_);
  v1::JobBeat beat;
  NameAttempt(*this, &beat);
  *beat.mutable_progress() = progress_;
  AddEvents(kMaxEventsPerBeat, std::min(room, kMaxBeatBytes), &beat);
  progress_changed_ = false;
  return beat;
}

v1::JobBeat JobSession::MakeLastBeat() {
  const std::lock_guard lock(mutex_);
  CloseStage();
  v1::JobBeat beat;
  AddEvents(kMaxLastEvents, kMaxLastBytes, &beat);
  return beat;
}

bool JobSession::HasMoreThanLastBeat() const {
  const std::lock_guard lock(mutex_);
  return Fitting(kMaxLastEvents, kMaxLastBytes) < events_.size();
}

v1::JobBeat JobSession::PendingEvents() const {
  const std::lock_guard lock(mutex_);
  v1::JobBeat beat;
  AddEvents(kMaxEventsPerBeat, kMaxBeatBytes, &beat);
  return beat;
}

void JobSession::OnAnswer(const v1::JobDirective& directive, MonotonicTime sent) {
  const std::lock_guard lock(mutex_);
  // An older server does not say which job of the name it means.
  const bool other = !directive.job_uid().empty() && directive.job_uid() != job_uid_;
  if (directive.epoch() != epoch_ || other) return;
  while (!events_.empty() && first_event_ < directive.next_event_offset()) {
    pending_bytes_ -= events_.front().ByteSizeLong();
    events_.pop_front();
    ++first_event_;
  }
  if (directive.directive() != v1::DIRECTIVE_LOST && directive.has_ttl()) {
    ttl_ = ToDuration(directive.ttl());
    confirmed_end_ = std::max(confirmed_end_, sent + ttl_);
    lease_end_ = std::max(lease_end_, confirmed_end_);
  }
  StopReason reason = StopReason::kNone;
  if (directive.directive() == v1::DIRECTIVE_CANCEL) reason = StopReason::kCancel;
  if (directive.directive() == v1::DIRECTIVE_LOST) reason = StopReason::kLost;
  if (directive.directive() == v1::DIRECTIVE_CHECKPOINT_AND_RELEASE) reason = StopReason::kRelease;
  stop_ = std::max(stop_, reason);
}

void JobSession::OnStoreAway(MonotonicTime sent) {
  const std::lock_guard lock(mutex_);
  lease_end_ = std::max(lease_end_, std::min(sent + ttl_, confirmed_end_ + kMaxOutage));
}

void JobSession::Stop(StopReason reason) {
  const std::lock_guard lock(mutex_);
  stop_ = std::max(stop_, reason);
}

StopReason JobSession::stop_reason(MonotonicTime now) const {
  const std::lock_guard lock(mutex_);
  return now + margin_ >= lease_end_ ? StopReason::kLost : stop_;
}

absl::Status JobSession::CheckRunning() const {
  switch (stop_reason(std::chrono::steady_clock::now())) {
    case StopReason::kNone:
    case StopReason::kRelease:
      return absl::OkStatus();
    case StopReason::kReleaseNow:
      return absl::CancelledError("the worker is shutting down");
    case StopReason::kCancel:
      return absl::CancelledError("the job was cancelled");
    case StopReason::kLost:
      return absl::CancelledError("the lease was lost");
  }
  return absl::OkStatus();
}

}  // namespace quantry::agent
