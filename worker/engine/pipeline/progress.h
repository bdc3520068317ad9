#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/pipeline/events.h"

namespace quantry::engine {

// Seconds since some fixed point; passed in so that tests own the time.
using Seconds = std::function<double()>;

// Steps of a whole job, fixed before the first block but for `extra`.
struct StepPlan {
  int blocks = 0;
  int64_t preprocessing = 0;
  int64_t calibrating = 0;
  int64_t per_block = 0;
  int64_t tuning = 0;  // of the whole model, after all blocks
  int64_t packing = 0;
  int64_t evaluating = 0;
  int64_t extra = 0;  // what turned out to be done again
  // Cost of one evaluating step relative to the forward pass of one block over
  // the calibration stream; for the ETA.
  double evaluating_weight = 0;
  double tuning_weight = 0;  // the same of a tuning step

  int64_t total() const {
    return preprocessing + calibrating + blocks * per_block + tuning + packing + evaluating + extra;
  }
};

// A piece of a run's time: a stage, or a block within the stage before it.
struct Span {
  std::string name;  // "quantizing", "block 3"
  int block = -1;    // -1: a stage
  double begin = 0;  // seconds of the tracker's clock
  double end = 0;
  std::map<std::string, double> figures = {};  // "loss_final": ...
};

// Tells how far files have been read, rotated and hashed before there is a plan of steps: the
// metric loaded_bytes of the loading stage, at most a few times a second.
class LoadingMeter {
 public:
  LoadingMeter(EventWriter& events, const Seconds& clock);
  void Count(uint64_t bytes);

 private:
  EventWriter& events_;
  const Seconds& clock_;
  double told_at_;
  uint64_t bytes_ = 0;
};

// Counts steps and tells the world: at most a few events a second, at least
// one a second of steady work, steps_done strictly growing from event to
// event. Only Advance may be called from several threads at once.
class ProgressTracker : public ProgressSink {
 public:
  // `began`: when the job, and with it the loading stage, began.
  ProgressTracker(const StepPlan& plan, EventWriter& events, Seconds clock, double began,
                  std::function<int64_t()> device_memory);

  void EnterStage(Stage stage);
  // Blocks taken over from a checkpoint; their steps count as done.
  void Resume(int blocks);
  void Advance(int64_t steps, std::string_view what) override;
  void Extend(int64_t steps) override;
  void TakeOver(int64_t steps) override;
  void Measure(const std::map<std::string, double>& figures) override;
  void PhaseStarted(int64_t steps) override;
  // A block of preprocessing's first pass took that long.
  void FirstPassBlock(double seconds);
  void BlockStarted();
  // `stream_seconds`: the part of the block's time spent on one forward pass
  // of the stream through one block.
  void BlockDone(const BlockReport& report, double stream_seconds);

  int64_t steps_done() const { return done_; }
  // Wall time of every stage entered so far, the running one included.
  std::map<std::string, double> stage_seconds() const;
  // Stages in the order they were entered, each followed by its blocks; the
  // running stage ends now.
  std::vector<Span> spans() const;

 private:
  void Emit();
  std::optional<double> Eta() const;
  std::optional<double> BlocksLeft() const;  // seconds; empty = not known yet
  // Of the steps of the block in progress.
  double ShareOf(int64_t steps) const;
  std::optional<double> PhaseLeft() const;

  StepPlan plan_;
  EventWriter& events_;
  Seconds clock_;
  std::function<int64_t()> device_memory_;
  std::mutex mutex_;
  Stage stage_ = Stage::kLoading;
  double stage_began_;
  std::map<std::string, double> stage_seconds_;
  std::vector<Span> spans_;
  size_t stage_span_ = 0;  // the running stage's
  int blocks_done_ = 0;
  int64_t done_ = 0;
  int64_t emitted_ = -1;
  double emitted_at_ = -1e9;
  double block_began_ = 0;
  int64_t block_steps_ = 0;        // of the block in progress
  int64_t block_done_steps_ = 0;   // of these
  int64_t block_taken_steps_ = 0;  // and of those, what an earlier run did
  double phase_began_ = 0;
  int64_t phase_steps_ = 0;  // 0 = in no phase
  int64_t phase_done_ = 0;
  bool in_block_ = false;
  int timed_blocks_ = 0;
  double timed_seconds_ = 0;
  double stream_seconds_ = 0;
  double evaluating_began_ = 0;
  int64_t evaluating_done_ = 0;
  std::optional<BlockReport> last_;
  std::map<std::string, double> measured_;  // since the last block began
};

}  // namespace quantry::engine
