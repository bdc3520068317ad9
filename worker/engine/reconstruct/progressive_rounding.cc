#include "worker/engine/reconstruct/progressive_rounding.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "worker/engine/base/error.h"
#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

constexpr int kMaxRetries = 3;
// Weights one task of StepAll takes.
constexpr int64_t kTaskWeights = int64_t{1} << 14;

TrainableTensors Current(const std::vector<SoftRounding>& linears) {
  TrainableTensors current;
  for (const SoftRounding& linear : linears) current.weights.push_back(linear.weight());
  return current;
}

StageState Snapshot(const std::vector<SoftRounding>& linears, int stages_done, double share) {
  StageState state{stages_done, share, {}, {}};
  for (const SoftRounding& linear : linears) {
    state.logits.push_back(linear.logits());
    state.scale_logits.push_back(linear.scale_logits());
  }
  return state;
}

void Restore(const StageState& state, std::vector<SoftRounding>& linears) {
  for (size_t i = 0; i < linears.size(); ++i) {
    linears[i].Restore(state.logits.at(i), state.scale_logits.at(i));
  }
}

}  // namespace

std::vector<int64_t> DrawWindows(int64_t windows, int64_t count, uint64_t seed) {
  std::vector<int64_t> order(windows);
  std::iota(order.begin(), order.end(), 0);
  Random random(seed);
  for (int64_t i = 0; i < count; ++i) {
    std::swap(order[i], order[i + static_cast<int64_t>(random.Below(windows - i))]);
  }
  order.resize(count);
  return order;
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
  at::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Task& task = tasks[t];
      linears[task.linear].StepRows(gradients[task.linear], task.first, task.last);
    }
  });
}

ProgressiveRounding::ProgressiveRounding(int block, const BlockObjective& objective,
                                         const ProgressiveRoundingOptions& options,
                                         ProgressSink& progress)
    : block_(block), objective_(objective), options_(options), progress_(progress) {}

int64_t ProgressiveRounding::Steps(const ProgressiveRoundingOptions& options) {
  return static_cast<int64_t>(options.schedule.size()) * options.steps_per_stage;
}

double ProgressiveRounding::Train(int stage, std::vector<SoftRounding>& linears,
                                  int64_t& steps_told) {
  const TrainableTensors current = Current(linears);
  StepRates rates = options_.rates;
  rates.rounding *= rate_share_;
  rates.scale *= rate_share_;
  double sum = 0;
  for (int64_t step = 0; step < options_.steps_per_stage; ++step) {
    const uint64_t number = static_cast<uint64_t>(stage * options_.steps_per_stage + step);
    const uint64_t seed =
        Random(options_.seed ^ (static_cast<uint64_t>(block_) << 40)).Next() + number;
    const BlockObjective::Result result =
        objective_.Gradients(DrawWindows(objective_.windows(), options_.batch_size, seed), current);
    if (!std::isfinite(result.loss)) return result.loss;
    sum += result.loss;
    StepAll(linears, result.weight_gradients, rates);
    if (step < steps_told) continue;  // again, after a retry
    ++steps_told;
    progress_.Advance(1, "learning roundings");
  }
  return sum / static_cast<double>(options_.steps_per_stage);
}

void ProgressiveRounding::Report(int stage, double loss, const std::vector<SoftRounding>& linears) {
  double weights = 0;
  double hard = 0;
  double flips = 0;
  for (const SoftRounding& linear : linears) {
    const auto count = static_cast<double>(linear.rows() * linear.columns());
    weights += count;
    hard += count * linear.hard_fraction();
    flips += count * linear.flip_ratio();
  }
  progress_.Measure({{"stage", stage + 1},
                     {"stages", static_cast<double>(options_.schedule.size())},
                     {"loss_soft", loss},
                     {"hard_fraction", hard / weights},
                     {"flip_ratio", flips / weights}});
}

void ProgressiveRounding::GiveUp(int stage) const {
  const std::string step = StrCat("stage ", stage + 1, " of progressive rounding");
  throw UserError("NON_FINITE_LOSS",
                  StrCat("block ", block_, ", ", step,
                         ": the loss is not finite, and lower learning rates did not help; check "
                         "the calibration text, or lower learning_rate"),
                  {{"block", std::to_string(block_)}, {"step", step}});
}

RoundingReport ProgressiveRounding::Run(std::vector<SoftRounding>& linears, StageStore* store) {
  RoundingReport report;
  int stage = 0;
  if (store != nullptr) {
    if (const std::optional<StageState> found = store->Load(block_)) {
      Restore(*found, linears);
      stage = found->stages_done;
      rate_share_ = found->learning_rate_share;
      progress_.Advance(stage * options_.steps_per_stage, "taken from the checkpoint");
    }
  }
  const auto stages = static_cast<int>(options_.schedule.size());
  for (; stage < stages; ++stage) {
    const StageState before = Snapshot(linears, stage, rate_share_);
    int64_t steps_told = 0;
    double loss = std::numeric_limits<double>::quiet_NaN();
    for (int attempt = 0; !std::isfinite(loss); ++attempt) {
      if (attempt > kMaxRetries) GiveUp(stage);
      if (attempt > 0) {
        Restore(before, linears);
        rate_share_ /= 2;
        ++report.retries;
      }
      for (SoftRounding& linear : linears) linear.Harden(options_.schedule[stage]);
      loss = Train(stage, linears, steps_told);
    }
    report.loss_soft = loss;
    report.stage_losses.push_back(loss);
    Report(stage, loss, linears);
    if (store != nullptr) store->Save(block_, Snapshot(linears, stage + 1, rate_share_));
  }
  for (SoftRounding& linear : linears) linear.HardenAll();
  return report;
}

}  // namespace quantry::engine
