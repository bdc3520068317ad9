#include "worker/engine/reconstruct/whole_model_training.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "worker/engine/base/error.h"
#include "worker/engine/base/non_finite.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/reconstruct/retries.h"

namespace quantry::engine {
namespace {

EngineError StaysNotFinite(const WholeModelTraining& training, int64_t step) {
  return UserError("NON_FINITE_LOSS",
                   StrCat(training.doing, ", step ", step,
                          ": the loss or what is trained is not finite, also at a hundredth of the "
                          "learning rates; ",
                          training.advice),
                   {{"step", StrCat(training.doing, ", step ", step)}});
}

class Trainer {
 public:
  Trainer(WholeModelTraining training, TrainingStore* store, ProgressSink& progress)
      : training_(std::move(training)), store_(store), progress_(progress) {
    state_.tensors = training_.adam.tensors();
    for (const at::Tensor& tensor : state_.tensors) beginning_.push_back(tensor.clone());
  }

  TrainingState Run() {
    Resume();
    while (state_.steps_done < training_.steps) {
      if (const std::optional<double> loss = Step()) {
        Count(*loss);
      } else {
        StartOver();
      }
    }
    return std::move(state_);
  }

 private:
  void Resume() {
    const auto kept = store_ != nullptr ? store_->Load() : std::nullopt;
    if (state_.Resume(kept)) training_.adam.Restore(kept->steps_done, kept->moments);
    if (state_.steps_done > 0) {
      progress_.Advance(Progress(state_.steps_done), "taken from the checkpoint");
    }
    progress_.PhaseStarted(Progress(training_.steps - state_.steps_done));
  }

  int64_t Progress(int64_t steps) const { return steps * training_.progress_of_step; }

  // The loss before the step; nullopt when that, or what the step left, is not finite.
  std::optional<double> Step() {
    const int64_t step = state_.steps_done;
    told_ = 0;
    const TrainingGradients gradients =
        training_.gradients_at(step, [this](double done) { Tell(done); });
    if (!std::isfinite(gradients.loss)) return std::nullopt;
    training_.adam.Step(gradients.tensors, training_.rate_at(step) * RateAfter(state_.retries));
    if (!std::all_of(state_.tensors.begin(), state_.tensors.end(), AllFinite)) return std::nullopt;
    return gradients.loss;
  }

  // What Count tells is left, with the loss.
  void Tell(double done) {
    const int64_t reached =
        std::min<int64_t>(std::llround(done * static_cast<double>(Progress(1))), Progress(1) - 1);
    if (reached > told_)
      progress_.Advance(reached - std::exchange(told_, reached), training_.doing);
  }

  void Count(double loss) {
    state_.Count(loss, training_.steps);
    progress_.Measure({{training_.loss, loss}});
    progress_.Advance(Progress(1) - std::exchange(told_, 0), training_.doing);
    if (store_ == nullptr) return;
    state_.moments = training_.adam.Moments();
    store_->Save(state_, state_.steps_done == training_.steps);
  }

  void StartOver() {
    if (state_.retries == kMostStartsOver) throw StaysNotFinite(training_, state_.steps_done);
    progress_.Extend(Progress(state_.steps_done) + std::exchange(told_, 0));
    progress_.PhaseStarted(Progress(training_.steps));
    TrainingState again;
    again.tensors = state_.tensors;
    again.retries = state_.retries + 1;
    for (size_t i = 0; i < beginning_.size(); ++i) again.tensors[i].copy_(beginning_[i]);
    training_.adam.Forget();
    state_ = std::move(again);
  }

  WholeModelTraining training_;
  TrainingStore* const store_;
  ProgressSink& progress_;
  TrainingState state_;
  int64_t told_ = 0;                   // of the progress of a step in work
  std::vector<at::Tensor> beginning_;  // copies
};

}  // namespace

void AddGradients(TrainingGradients& to, const TrainingGradients& from) {
  to.loss += from.loss;
  for (size_t i = 0; i < to.tensors.size(); ++i) to.tensors[i].add_(from.tensors[i]);
}

TrainingState Train(WholeModelTraining training, TrainingStore* store, ProgressSink& progress) {
  return Trainer(std::move(training), store, progress).Run();
}

}  // namespace quantry::engine
