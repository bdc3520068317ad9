#include "worker/engine/reconstruct/progressive_rounding.h"

#include <algorithm>
#include <cmath>

#include "worker/engine/base/non_finite.h"
#include "worker/engine/base/parallel.h"
#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/reconstruct/adam.h"

namespace quantry::engine {
namespace {

constexpr int kMaxRetries = 3;  // of a stage
constexpr int kMaxRepeats = 5;  // of a block, from which on worse stages stay
// Stages of 39 blocks of four models that went well rose to 1.7 times the lowest before them at
// most, those of one that did not to 24 times (docs/methods/tesseraq.md).
constexpr double kMostRise = 3;
// Stages after the schedule's, each with so much less soft, and what calls for one.
constexpr int kMaxFinerStages = 4;
constexpr double kFiner = 4;
constexpr double kMostHardRise = 1.5;
// Weights one task of StepAll takes.
constexpr int64_t kTaskWeights = int64_t{1} << 14;

TrainableTensors Current(const TrainedBlock& trained) {
  TrainableTensors current;
  for (const SoftRounding& linear : trained.linears) current.weights.push_back(linear.weight());
  current.dense = trained.dense;
  return current;
}

TrainableTensors Hard(const TrainedBlock& trained) {
  TrainableTensors hard;
  for (const SoftRounding& linear : trained.linears) hard.weights.push_back(linear.HardWeight());
  hard.dense = trained.dense;
  return hard;
}

StageState Snapshot(const TrainedBlock& trained, int stages_done, double share,
                    const RoundingReport& report) {
  StageState state{stages_done, share, report.loss_soft, report.retries, {}, {}, {}};
  for (const SoftRounding& linear : trained.linears) {
    state.logits.push_back(linear.logits());
    state.scale_logits.push_back(linear.scale_logits());
  }
  for (const at::Tensor& tensor : trained.dense) state.dense.push_back(tensor.clone());
  return state;
}

void Restore(const StageState& state, TrainedBlock& trained) {
  for (size_t i = 0; i < trained.linears.size(); ++i) {
    trained.linears[i].Restore(state.logits.at(i), state.scale_logits.at(i));
  }
  for (size_t i = 0; i < trained.dense.size(); ++i) trained.dense[i].copy_(state.dense.at(i));
}

// Whether training can go on from here.
bool IsSound(const TrainedBlock& trained) {
  return std::all_of(trained.linears.begin(), trained.linears.end(),
                     [](const SoftRounding& linear) { return linear.IsSound(); }) &&
         std::all_of(trained.dense.begin(), trained.dense.end(), AllFinite);
}

// Mean over all weights of what each linear says of its own.
double MeanOf(const std::vector<SoftRounding>& linears, double (SoftRounding::*figure)() const) {
  double weights = 0;
  double sum = 0;
  for (const SoftRounding& linear : linears) {
    const auto count = static_cast<double>(linear.rows() * linear.columns());
    weights += count;
    sum += count * (linear.*figure)();
  }
  return sum / weights;
}

}  // namespace

std::vector<int64_t> DrawWindows(int64_t windows, int64_t count, uint64_t seed) {
  Random random(seed);
  return DrawDistinct(windows, count, random);
}

std::vector<int64_t> EpochWindows(int64_t windows, int64_t count, int64_t step, uint64_t seed) {
  const int64_t batches = windows / count;
  const std::vector<int64_t> order =
      DrawWindows(windows, windows, seed + static_cast<uint64_t>(step / batches));
  const auto first = order.begin() + step % batches * count;
  return {first, first + count};
}

void StepAll(std::vector<SoftRounding>& linears, const std::vector<at::Tensor>& gradients,
             const StepRates& rates) {
  struct Task {
    size_t linear;
    int64_t first, last;
  };
  std::vector<Task> tasks;
  for (size_t i = 0; i < linears.size(); ++i) {
    linears[i].BeginStep(rates);
    const int64_t rows = std::max<int64_t>(1, kTaskWeights / linears[i].columns());
    for (int64_t first = 0; first < linears[i].rows(); first += rows) {
      tasks.push_back({i, first, std::min(first + rows, linears[i].rows())});
    }
  }
  ForEachIndex(static_cast<int64_t>(tasks.size()), 1, [&](int64_t t) {
    const Task& task = tasks[t];
    linears[task.linear].StepRows(gradients[task.linear], task.first, task.last);
  });
}

ProgressiveRounding::ProgressiveRounding(int block, const BlockObjective& objective,
                                         const ProgressiveRoundingOptions& options,
                                         ProgressSink& progress)
    : block_(block),
      objective_(objective),
      options_(options),
      progress_(progress),
      given_stages_(static_cast<int>(options.schedule.size())),
      stages_(given_stages_) {}

int64_t ProgressiveRounding::Steps(const ProgressiveRoundingOptions& options) {
  return static_cast<int64_t>(options.schedule.size()) * options.steps_per_stage +
         options.final_steps;
}

int64_t ProgressiveRounding::StateBytes(int64_t weights, int64_t groups) {
  constexpr int64_t kLogit = sizeof(float);
  return weights * (SoftRounding::kBytesPerWeight + kLogit) +
         groups * (SoftRounding::kBytesPerGroup + kLogit);
}

int64_t ProgressiveRounding::StepsOf(int stage) const {
  return stage < stages_ ? options_.steps_per_stage : options_.final_steps;
}

StepRates ProgressiveRounding::RatesAt(int stage, int64_t step) const {
  StepRates rates = options_.rates;
  const double stages = given_stages_;  // finer ones go on as it ends
  const double place = static_cast<double>(step) / static_cast<double>(StepsOf(stage));
  double share = rate_share_;
  if (stage < stages_) {
    share *= 1.0 - (1.0 - options_.final_rate_share) * std::min(1.0, (stage + place) / stages);
  } else {
    share *= options_.final_rate_share * (1.0 - place);
  }
  rates.rounding *= share;
  rates.scale *= share;
  rates.dense = options_.dense_rate * share;
  return rates;
}

uint64_t ProgressiveRounding::SeedOf(int64_t place) const {
  return Random(options_.seed ^ (static_cast<uint64_t>(block_) << 40)).Next() +
         static_cast<uint64_t>(place);
}

std::vector<int64_t> ProgressiveRounding::BatchOf(int64_t place) const {
  if (options_.whole_epochs) {
    return EpochWindows(TrainingWindows(), options_.batch_size, place, SeedOf(0));
  }
  return DrawWindows(TrainingWindows(), options_.batch_size, SeedOf(place));
}

double ProgressiveRounding::Train(int stage, TrainedBlock& trained, int64_t& taken) {
  const TrainableTensors current = Current(trained);
  Adam dense;
  for (const at::Tensor& tensor : trained.dense) dense.Add(tensor, SizeOf(tensor));
  const int64_t steps = StepsOf(stage);
  double sum = 0;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t place = stage * options_.steps_per_stage + step;
    const BlockObjective::Result result =
        objective_.Gradients(BatchOf(place), current, SeedOf(place));
    if (!std::isfinite(result.loss)) return result.loss;
    sum += result.loss;
    const StepRates rates = RatesAt(stage, step);
    StepAll(trained.linears, result.weight_gradients, rates);
    dense.Step(result.dense_gradients, rates.dense);
    progress_.Measure({{"stage_step", static_cast<double>(step + 1)}});
    ++taken;
    progress_.Advance(1, "learning roundings");
  }
  return sum / static_cast<double>(steps);
}

double ProgressiveRounding::TrainWithRetries(int stage, TrainedBlock& trained,
                                             RoundingReport& report) {
  const StageState before = Snapshot(trained, stage, rate_share_, report);
  // Steps() knows of no finer stage.
  if (stage < stages_ && stage >= given_stages_) progress_.Extend(options_.steps_per_stage);
  int64_t taken = 0;
  for (int attempt = 0; attempt <= kMaxRetries; ++attempt) {
    if (attempt > 0) {
      Restore(before, trained);
      progress_.Extend(taken);
      taken = 0;
      rate_share_ /= 2;
      ++report.retries;
    }
    for (SoftRounding& linear : trained.linears) {
      if (stage < stages_) {
        linear.Harden(SoftShare(stage));
      } else {
        linear.HardenAll();
      }
    }
    ReportBeginning(stage, trained);
    const double loss = Train(stage, trained, taken);
    // The loss is that before the last step, which may break down as well.
    if (!std::isfinite(loss) || !IsSound(trained)) continue;
    const bool enough = attempt == kMaxRetries || report.retries >= kMaxRepeats;
    if (enough || !IsWorse(loss, report.loss_soft)) return loss;
  }
  GiveUp(stage);
}

// `before`: loss of the stage before, 0 for the first.
bool ProgressiveRounding::IsWorse(double loss, double before) const {
  if (!std::isfinite(options_.most_loss)) return false;
  return loss > options_.most_loss || (before > 0 && loss > kMostRise * before);
}

void ProgressiveRounding::ReportBeginning(int stage, const TrainedBlock& trained) {
  progress_.Measure({{"stage", std::min(stage + 1, stages_)},
                     {"stages", stages_},
                     {"stage_step", 0},
                     {"stage_steps", static_cast<double>(StepsOf(stage))},
                     {"hard_fraction", MeanOf(trained.linears, &SoftRounding::hard_fraction)}});
}

// On the first batch of windows.
double ProgressiveRounding::LossOf(const TrainableTensors& tensors) const {
  return objective_.Loss(tensors, std::min(options_.batch_size, TrainingWindows()));
}

double ProgressiveRounding::SoftShare(int stage) const {
  return stage < given_stages_
             ? options_.schedule[stage]
             : options_.schedule.back() / std::pow(kFiner, stage - given_stages_ + 1);
}

bool ProgressiveRounding::WantsFinerStage(const TrainedBlock& trained) const {
  if (!std::isfinite(options_.most_loss) || given_stages_ == 0) return false;
  if (stages_ == given_stages_ + kMaxFinerStages) return false;
  return LossOf(Hard(trained)) > kMostHardRise * LossOf(Current(trained));
}

void ProgressiveRounding::ReportEnd(double loss, const TrainedBlock& trained) {
  progress_.Measure({{"loss_soft", loss},
                     {"loss_hard", LossOf(Hard(trained))},
                     {"flip_ratio", MeanOf(trained.linears, &SoftRounding::flip_ratio)}});
}

void ProgressiveRounding::GiveUp(int stage) const {
  throw NonFiniteLoss(block_, StrCat("stage ", stage + 1, " of progressive rounding"),
                      "the loss or what is trained is not finite, and lower learning rates did not "
                      "help; check the calibration text, or lower learning_rate");
}

RoundingReport ProgressiveRounding::Run(TrainedBlock& trained, StageStore* store) {
  RoundingReport report;
  int stage = 0;
  if (store != nullptr) {
    if (const std::optional<StageState> found = store->Load(block_)) {
      Restore(*found, trained);
      stage = found->stages_done;
      stages_ = std::max(stages_, stage);
      rate_share_ = found->learning_rate_share;
      report.loss_soft = found->loss_soft;
      report.retries = found->retries;
      progress_.TakeOver(std::min(stage, given_stages_) * options_.steps_per_stage);
    }
  }
  for (;; ++stage) {
    if (stage == stages_ && !WantsFinerStage(trained)) break;
    stages_ = std::max(stages_, stage + 1);
    const double loss = TrainWithRetries(stage, trained, report);
    report.stage_losses.push_back(loss);
    report.loss_soft = loss;
    ReportEnd(loss, trained);
    if (store != nullptr) store->Save(block_, Snapshot(trained, stage + 1, rate_share_, report));
  }
  if (options_.final_steps > 0) {
    report.loss_soft = TrainWithRetries(stages_, trained, report);
  } else {
    for (SoftRounding& linear : trained.linears) linear.HardenAll();
  }
  return report;
}

}  // namespace quantry::engine
