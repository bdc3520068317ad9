#include "worker/engine/pipeline/progress.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "worker/engine/base/strings.h"
#include "worker/engine/device/device.h"

namespace quantry::engine {
namespace {

constexpr double kSecondsBetweenEvents = 0.5;
// Share of the first block after which the time left is guessed from its steps.
constexpr double kLeastShare = 0.02;

// google.protobuf.Duration as proto JSON: "12.3s".
std::string DurationText(double seconds) { return Printed("%.1fs", std::max(0.0, seconds)); }

// "quantizing" for STAGE_QUANTIZING.
std::string SpanName(Stage stage) {
  std::string name = StageName(stage).substr(std::string_view("STAGE_").size());
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

}  // namespace

LoadingMeter::LoadingMeter(EventWriter& events, const Seconds& clock)
    : events_(events), clock_(clock), told_at_(clock()) {}

void LoadingMeter::Count(uint64_t bytes) {
  bytes_ += bytes;
  const double now = clock_();
  if (now - told_at_ < kSecondsBetweenEvents) return;
  told_at_ = now;
  events_.Progress({{"stage", StageName(Stage::kLoading)},
                    {"peak_rss_bytes", PeakRssBytes()},
                    {"metrics", {{"loaded_bytes", bytes_}}}});
}

ProgressTracker::ProgressTracker(const StepPlan& plan, EventWriter& events, Seconds clock,
                                 double began, std::function<int64_t()> device_memory)
    : plan_(plan),
      events_(events),
      clock_(std::move(clock)),
      device_memory_(std::move(device_memory)),
      stage_began_(began) {
  spans_.push_back({.name = SpanName(stage_), .begin = began});
}

void ProgressTracker::EnterStage(Stage stage) {
  const double now = clock_();
  stage_seconds_[StageName(stage_)] += now - stage_began_;
  stage_ = stage;
  stage_began_ = now;
  spans_[stage_span_].end = now;
  stage_span_ = spans_.size();
  spans_.push_back({.name = SpanName(stage), .begin = now});
  if (stage == Stage::kEvaluating) evaluating_began_ = now;
  events_.StageChanged(stage);
}

std::map<std::string, double> ProgressTracker::stage_seconds() const {
  std::map<std::string, double> seconds = stage_seconds_;
  seconds[StageName(stage_)] += clock_() - stage_began_;
  return seconds;
}

std::vector<Span> ProgressTracker::spans() const {
  std::vector<Span> spans = spans_;
  spans[stage_span_].end = clock_();
  return spans;
}

void ProgressTracker::Resume(int blocks) {
  blocks_done_ = blocks;
  done_ += blocks * plan_.per_block;
}

void ProgressTracker::Advance(int64_t steps, std::string_view) {
  const std::lock_guard lock(mutex_);
  done_ += steps;
  if (in_block_) block_done_steps_ += steps;
  if (phase_steps_ > 0) {
    phase_done_ += steps;
    if (phase_done_ >= phase_steps_) phase_steps_ = 0;
  }
  if (stage_ == Stage::kEvaluating) evaluating_done_ += steps;
  if (clock_() - emitted_at_ >= kSecondsBetweenEvents) Emit();
}

void ProgressTracker::Extend(int64_t steps) {
  const std::lock_guard lock(mutex_);
  plan_.extra += steps;
  if (in_block_) block_steps_ += steps;
}

void ProgressTracker::TakeOver(int64_t steps) {
  {
    const std::lock_guard lock(mutex_);
    if (in_block_) block_taken_steps_ += steps;
  }
  ProgressSink::TakeOver(steps);
}

void ProgressTracker::Measure(const std::map<std::string, double>& figures) {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, value] : figures) measured_[name] = value;
}

void ProgressTracker::PhaseStarted(int64_t steps) {
  phase_steps_ = steps;
  phase_done_ = 0;
  phase_began_ = clock_();
}

void ProgressTracker::FirstPassBlock(double seconds) {
  const double now = clock_();
  const int index = timed_blocks_;
  spans_.push_back({.name = "first pass, block " + std::to_string(index),
                    .block = index,
                    .begin = now - seconds,
                    .end = now});
  ++timed_blocks_;
  timed_seconds_ += seconds;
}

void ProgressTracker::BlockStarted() {
  block_began_ = clock_();
  block_steps_ = plan_.per_block;
  block_done_steps_ = block_taken_steps_ = 0;
  in_block_ = true;
  measured_.clear();
}

void ProgressTracker::BlockDone(const BlockReport& report, double stream_seconds) {
  in_block_ = false;
  spans_.push_back({.name = "block " + std::to_string(report.index),
                    .block = report.index,
                    .begin = block_began_,
                    .end = clock_(),
                    .figures = {{"loss_rtn", report.loss_rtn}, {"loss_final", report.loss_final}}});
  ++blocks_done_;
  const double worked = 1 - ShareOf(block_taken_steps_);
  if (worked >= kLeastShare) {
    ++timed_blocks_;
    timed_seconds_ += (clock_() - block_began_) / worked;
  }
  stream_seconds_ = stream_seconds;
  last_ = report;
  for (const auto& [name, value] : report.metrics)
    measured_.erase(name);  // the block's word counts
  Emit();
}

double ProgressTracker::ShareOf(int64_t steps) const {
  return std::min(
      1.0, static_cast<double>(steps) / static_cast<double>(std::max<int64_t>(block_steps_, 1)));
}

// Blocks cost what the blocks before cost, the first one what its steps so far
// say.
std::optional<double> ProgressTracker::BlocksLeft() const {
  if (blocks_done_ >= plan_.blocks) return 0.0;
  const double share = in_block_ ? ShareOf(block_done_steps_) : 0.0;
  const double worked = in_block_ ? ShareOf(block_done_steps_ - block_taken_steps_) : 0.0;
  if (timed_blocks_ == 0 && worked < kLeastShare) return std::nullopt;
  const double block =
      timed_blocks_ > 0 ? timed_seconds_ / timed_blocks_ : (clock_() - block_began_) / worked;
  return (plan_.blocks - blocks_done_ - share) * block;
}

// What is left of the phase; of a tuning to come, a guess from the forward
// pass. Adapters to come cannot be guessed.
std::optional<double> ProgressTracker::PhaseLeft() const {
  if (phase_steps_ == 0) {
    if (stage_ == Stage::kPreprocessing) return std::nullopt;
    const bool ahead = stage_ <= Stage::kQuantizing && plan_.tuning > 0;
    return ahead ? static_cast<double>(plan_.tuning) * plan_.tuning_weight * stream_seconds_ : 0;
  }
  if (phase_done_ == 0) return std::nullopt;
  return (clock_() - phase_began_) * static_cast<double>(phase_steps_ - phase_done_) /
         static_cast<double>(phase_done_);
}

// Evaluation is guessed from the forward pass until it can be measured itself,
// which leaves it out within the first block. A phase before any block has been
// timed, as after a resume, is all that is known.
std::optional<double> ProgressTracker::Eta() const {
  const std::optional<double> blocks = BlocksLeft();
  const std::optional<double> phase = PhaseLeft();
  if (!phase) return std::nullopt;
  if (!blocks) return phase_steps_ > 0 ? phase : std::nullopt;
  const auto left = static_cast<double>(plan_.evaluating - evaluating_done_);
  double step = plan_.evaluating_weight * stream_seconds_;
  if (evaluating_done_ > 0) {
    step = (clock_() - evaluating_began_) / static_cast<double>(evaluating_done_);
  }
  return *blocks + *phase + left * step;
}

void ProgressTracker::Emit() {
  if (done_ <= emitted_) return;
  emitted_ = done_;
  emitted_at_ = clock_();
  const int64_t total = std::max<int64_t>(plan_.total(), 1);
  nlohmann::ordered_json progress = {
      {"stage", StageName(stage_)},
      {"blocks_done", blocks_done_},
      {"blocks_total", plan_.blocks},
      {"steps_done", done_},
      {"steps_total", plan_.total()},
      {"ratio", std::min(1.0, static_cast<double>(done_) / static_cast<double>(total))},
      {"peak_rss_bytes", PeakRssBytes()},
      {"device_memory_bytes", device_memory_()}};
  if (const std::optional<double> eta = Eta()) progress["eta"] = DurationText(*eta);
  nlohmann::ordered_json metrics = nlohmann::ordered_json::object();
  if (last_) {
    progress["loss_before"] = Finite(last_->loss_rtn);
    progress["loss_after"] = Finite(last_->loss_final);
    metrics = ToJson(*last_)["metrics"];
    metrics["block_seconds"] = Finite(last_->seconds);
  }
  for (const auto& [name, value] : measured_) metrics[name] = Finite(value);
  if (!metrics.empty()) progress["metrics"] = metrics;
  events_.Progress(progress);
}

}  // namespace quantry::engine
