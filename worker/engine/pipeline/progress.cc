#include "worker/engine/pipeline/progress.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "worker/engine/device/device.h"

namespace quantry::engine {
namespace {

constexpr double kSecondsBetweenEvents = 0.5;

// google.protobuf.Duration as proto JSON: "12.3s".
std::string DurationText(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1fs", std::max(0.0, seconds));
  return text;
}

}  // namespace

ProgressTracker::ProgressTracker(const StepPlan& plan, EventWriter& events, Seconds clock,
                                 double began, std::function<int64_t()> device_memory)
    : plan_(plan),
      events_(events),
      clock_(std::move(clock)),
      device_memory_(std::move(device_memory)),
      stage_began_(began) {}

void ProgressTracker::EnterStage(Stage stage) {
  const double now = clock_();
  stage_seconds_[StageName(stage_)] += now - stage_began_;
  stage_ = stage;
  stage_began_ = now;
  if (stage == Stage::kEvaluating) evaluating_began_ = now;
  events_.StageChanged(stage);
}

std::map<std::string, double> ProgressTracker::stage_seconds() const {
  std::map<std::string, double> seconds = stage_seconds_;
  seconds[StageName(stage_)] += clock_() - stage_began_;
  return seconds;
}

void ProgressTracker::Resume(int blocks) {
  blocks_done_ = blocks;
  done_ += blocks * plan_.per_block;
}

void ProgressTracker::Advance(int64_t steps, std::string_view) {
  const std::lock_guard lock(mutex_);
  done_ += steps;
  if (stage_ == Stage::kEvaluating) evaluating_done_ += steps;
  if (clock_() - emitted_at_ >= kSecondsBetweenEvents) Emit();
}

void ProgressTracker::Measure(const std::map<std::string, double>& figures) {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, value] : figures) measured_[name] = value;
}

void ProgressTracker::BlockStarted() { block_began_ = clock_(); }

void ProgressTracker::BlockDone(const BlockReport& report, double stream_seconds) {
  ++blocks_done_;
  ++timed_blocks_;
  timed_seconds_ += clock_() - block_began_;
  stream_seconds_ = stream_seconds;
  last_ = report;
  measured_.clear();
  Emit();
}

// Blocks cost what the blocks before cost; evaluation is guessed from the
// forward pass until it can be measured itself.
std::optional<double> ProgressTracker::Eta() const {
  if (timed_blocks_ == 0) return std::nullopt;
  const double blocks = (plan_.blocks - blocks_done_) * (timed_seconds_ / timed_blocks_);
  const auto left = static_cast<double>(plan_.evaluating - evaluating_done_);
  double step = plan_.evaluating_weight * stream_seconds_;
  if (evaluating_done_ > 0) {
    step = (clock_() - evaluating_began_) / static_cast<double>(evaluating_done_);
  }
  return blocks + left * step;
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
  }
  for (const auto& [name, value] : measured_) metrics[name] = Finite(value);
  if (!metrics.empty()) progress["metrics"] = metrics;
  events_.Progress(progress);
}

}  // namespace quantry::engine
