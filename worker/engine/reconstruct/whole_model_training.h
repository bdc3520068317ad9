#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/reconstruct/adam.h"
#include "worker/engine/reconstruct/training_state.h"

namespace quantry::engine {

struct TrainingGradients {
  double loss = 0;
  std::vector<at::Tensor> tensors;  // one of each tensor that is trained
};

// Of other windows of the same step; for OverShares.
void AddGradients(TrainingGradients& to, const TrainingGradients& from);

// Hears what share of a step is done, 0..1, from one thread at a time.
using StepShare = std::function<void(double share)>;

// Of shares of a step that run side by side, the first that asks tells of all.
class OneTells {
 public:
  explicit OneTells(const StepShare& done) : done_(done) {}
  StepShare Ask() { return asked_.test_and_set() ? StepShare() : done_; }

 private:
  const StepShare& done_;
  std::atomic_flag asked_;
};

// Tensors of all blocks, trained together by Adam.
struct WholeModelTraining {
  std::string doing;   // "training adapters": in progress and errors
  std::string advice;  // for who meets a loss that is not finite
  std::string loss;    // its name among the figures of progress
  int64_t steps = 0;
  int64_t progress_of_step = 1;                 // a step of a large model takes minutes
  Adam adam;                                    // has every tensor, with its rate
  std::function<double(int64_t step)> rate_at;  // all rates are times this
  std::function<TrainingGradients(int64_t step, const StepShare& share)> gradients_at;
};

// Goes on from `store` where that has a state of these tensors, and keeps every step's there
// (may be null). Advances `progress` by `progress_of_step` for each of `steps`; those not taken
// from the store are a phase.
// Begins again at lower rates as retries.h says; then throws EngineError "NON_FINITE_LOSS".
TrainingState Train(WholeModelTraining training, TrainingStore* store, ProgressSink& progress);

}  // namespace quantry::engine
