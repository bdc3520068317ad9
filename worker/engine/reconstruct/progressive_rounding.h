#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/reconstruct/block_objective.h"
#include "worker/engine/reconstruct/soft_rounding.h"

namespace quantry::engine {

// Progressive adaptive rounding of one block (spec: tesseraq.md 2 to 4).
struct ProgressiveRoundingOptions {
  std::vector<double> schedule;  // soft fraction after each stage's hardening
  int64_t steps_per_stage = 250;
  int64_t batch_size = 4;  // windows a step
  // Batches take every window once before any comes again; false: each is drawn anew.
  bool whole_epochs = false;
  // The last windows of the objective, which no step sees: batches come from
  // those before.
  int64_t held_out = 0;
  StepRates rates;
  // Rate of norm weights and of biases, relative to the root mean square of
  // each tensor; 0 = they stay as they are.
  double dense_rate = 0;
  // Rates fall linearly over the run to this share of themselves.
  double final_rate_share = 1;
  // Steps after the last hardening, for scales and dense tensors alone, rates
  // falling to 0.
  int64_t final_steps = 0;
  // Where this is finite, a stage whose mean loss is above it, or above kMostRise
  // times the stage's before, is trained again at half the rates, which stay, up
  // to kMaxRetries times a stage and kMaxRepeats times a block. And while deciding all that
  // is soft after the last stage raises the loss by half, another one follows it (kMaxFinerStages
  // at most) with a quarter as much soft: few weights may carry massive activations.
  double most_loss = std::numeric_limits<double>::infinity();
  uint64_t seed = 0;
};

// What is trained: roundings and scales of every linear, and the dense tensors
// of the block (DenseParameters), fp32; left empty when they are not trained.
struct TrainedBlock {
  std::vector<SoftRounding> linears;
  std::vector<at::Tensor> dense;
};

// State after a whole stage, enough to go on from with the same bytes.
struct StageState {
  int stages_done = 0;
  double learning_rate_share = 1;  // of the configured rates, after retries
  double loss_soft = 0;            // as in RoundingReport, so far
  int retries = 0;
  std::vector<at::Tensor> logits;        // of every linear
  std::vector<at::Tensor> scale_logits;  // of every linear
  std::vector<at::Tensor> dense;
};

// Where stages are kept between two runs; absent = nowhere.
class StageStore {
 public:
  virtual ~StageStore() = default;
  virtual std::optional<StageState> Load(int block) = 0;
  virtual void Save(int block, const StageState& state) = 0;
};

struct RoundingReport {
  double loss_soft = 0;  // mean training loss of the last stage
  std::vector<double> stage_losses;
  // Times the rates were halved after a stage whose loss or result was not finite,
  // or was worse (ProgressiveRoundingOptions::most_loss).
  int retries = 0;
};

// Trains the roundings of all linears of a block together, stage by stage:
// harden, then `steps_per_stage` Adam steps on random windows. Leaves every
// entry hard. Advances `progress` by Steps(), and what it extends it by, and measures
//   stage, stages, stage_step, stage_steps  where training is, stages from 1
//   hard_fraction  of the weights, in this stage
//   loss_soft      mean training loss of the last finished stage
//   loss_hard      loss after it if all were decided then, on the first batch
//   flip_ratio     of the weights, then
// Throws EngineError
// "NON_FINITE_LOSS" naming block and step when lower rates do not help either.
class ProgressiveRounding {
 public:
  ProgressiveRounding(int block, const BlockObjective& objective,
                      const ProgressiveRoundingOptions& options, ProgressSink& progress);

  static int64_t Steps(const ProgressiveRoundingOptions& options);
  // Host memory that training linears of so many weights and groups holds beside
  // gradients and activations: what SoftRounding does, and nu and v as they were
  // before the stage, which a retry starts from.
  static int64_t StateBytes(int64_t weights, int64_t groups);

  RoundingReport Run(TrainedBlock& trained, StageStore* store);

 private:
  // Mean loss of the stage; not finite when training broke down, after `taken` steps. Stage
  // stages_ is the one after the last hardening.
  double Train(int stage, TrainedBlock& trained, int64_t& taken);
  bool IsWorse(double loss, double before) const;
  double TrainWithRetries(int stage, TrainedBlock& trained, RoundingReport& report);
  int64_t TrainingWindows() const { return objective_.windows() - options_.held_out; }
  // Of the random numbers of a step.
  uint64_t SeedOf(int64_t place) const;
  // `place`: steps of the block before this one. A retry draws the same.
  std::vector<int64_t> BatchOf(int64_t place) const;
  StepRates RatesAt(int stage, int64_t step) const;
  int64_t StepsOf(int stage) const;
  // After the stage's hardening.
  double SoftShare(int stage) const;
  bool WantsFinerStage(const TrainedBlock& trained) const;
  double LossOf(const TrainableTensors& tensors) const;
  void ReportBeginning(int stage, const TrainedBlock& trained);
  void ReportEnd(double loss, const TrainedBlock& trained);
  [[noreturn]] void GiveUp(int stage) const;

  int block_;
  const BlockObjective& objective_;
  const ProgressiveRoundingOptions& options_;
  ProgressSink& progress_;
  double rate_share_ = 1;
  const int given_stages_;  // the schedule's
  int stages_;  // of hardening: those and the finer ones that a block turned out to want
};

// The first `count` of a random permutation of 0 .. windows-1: never the same
// index twice. Depends on the arguments alone.
std::vector<int64_t> DrawWindows(int64_t windows, int64_t count, uint64_t seed);

// Batch `step`, from 0, of as many whole ones as an epoch has: a permutation of 0 .. windows-1
// in pieces of `count`, drawn anew for every epoch.
std::vector<int64_t> EpochWindows(int64_t windows, int64_t count, int64_t step, uint64_t seed);

// Applies gradients to all linears, every core at work.
void StepAll(std::vector<SoftRounding>& linears, const std::vector<at::Tensor>& gradients,
             const StepRates& rates);

}  // namespace quantry::engine
