#include "worker/engine/methods/ptq161/train.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "worker/engine/base/non_finite.h"
#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/methods/ptq161/block_loss.h"
#include "worker/engine/reconstruct/retries.h"
#include "worker/engine/reconstruct/token_weights.h"

namespace quantry::engine {
namespace {

// The samples of an epoch in the order they are taken.
std::vector<int64_t> OrderOf(int64_t windows, bool shuffle, Random& random) {
  std::vector<int64_t> order(windows);
  std::iota(order.begin(), order.end(), 0);
  if (!shuffle) return order;
  for (int64_t i = windows - 1; i > 0; --i) {
    std::swap(order[i], order[random.Below(static_cast<uint64_t>(i) + 1)]);
  }
  return order;
}

// Sums over an epoch.
struct EpochSums {
  double total = 0, mse = 0, cosine = 0;
  int64_t turned = 0;
};

class GainTrainer {
 public:
  GainTrainer(const BlockTask& task, const Ptq161Options& options, const BlockSurvey& survey,
              const std::vector<MixedLinear>& linears, ProgressSink& progress)
      : task_(task),
        block_(task.block.Computing(options.compute)),
        options_(options),
        survey_(survey),
        linears_(linears),
        progress_(progress),
        loss_{options.mse_weight,
              options.cosine_weight,
              options.token_cosine,
              {MostTokenEnergy(survey.target_fp, options.token_energy_limit),
               MostTokenEnergy(survey.target_q, options.token_energy_limit)}} {}

  // nullopt when a loss or what was trained is not finite; failed_step() then tells where.
  std::optional<TrainingReport> Run(ParameterBuffer& buffer, double rate_scale) {
    Adam adam = OptimizerOf(buffer);
    Random random(task_.seed ^ (uint64_t{0x161} << 32) ^ static_cast<uint64_t>(task_.block.index));
    TrainingReport report;
    for (int epoch = 0; epoch < options_.epochs; ++epoch) {
      const std::optional<EpochSums> sums = RunEpoch(adam, buffer.grads(), rate_scale, random);
      if (!sums) return std::nullopt;
      Note(*sums, report);
      if (Stops(report)) {
        Tell((options_.epochs - epoch - 1) * windows());
        break;
      }
    }
    if (!AllFinite(buffer.values())) return std::nullopt;  // no loss saw what the last step did
    return report;
  }

  int64_t failed_step() const { return step_; }
  int64_t told() const { return told_; }

 private:
  int64_t windows() const { return task_.x_q.size(0); }

  void Tell(int64_t steps) {
    told_ += steps;
    progress_.Advance(steps, "training scales");
  }

  std::optional<EpochSums> RunEpoch(Adam& adam, const at::Tensor& grads, double rate_scale,
                                    Random& random) {
    EpochSums sums;
    for (const int64_t sample : OrderOf(windows(), options_.shuffle, random)) {
      const BlockLoss loss = Backward(sample);
      ++step_;
      if (!std::isfinite(loss.total)) return std::nullopt;
      adam.Step({grads}, rate_scale);
      sums.total += loss.total;
      sums.mse += loss.mse;
      sums.cosine += loss.cosine;
      sums.turned += loss.turned;
      Tell(1);
    }
    return sums;
  }

  // Leaves the gradients of one sample in the linears' Parameters.
  BlockLoss Backward(int64_t sample) const {
    const auto window = [&](const at::Tensor& x) {
      return x.slice(0, sample, sample + 1).to(task_.device);
    };
    const at::Tensor y =
        block_.Forward(window(task_.x_q), task_.rope, MixedForward(block_, linears_));
    BlockLoss loss =
        TwoTargetLoss(y.detach(), window(survey_.target_fp), window(survey_.target_q), loss_);
    if (std::isfinite(loss.total)) y.backward(loss.grad);
    return loss;
  }

  void Note(const EpochSums& sums, TrainingReport& report) const {
    const auto count = static_cast<double>(windows());
    if (report.losses.empty()) {
      report.mse_first = sums.mse / count;
      report.cosine_first = sums.cosine / count;
    }
    report.losses.push_back(sums.total / count);
    report.cosines_turned += sums.turned;
    report.mse_last = sums.mse / count;
    report.cosine_last = sums.cosine / count;
  }

  bool Stops(const TrainingReport& report) const {
    const size_t epochs = report.losses.size();
    if (options_.stop_improvement <= 0 || epochs < 2) return false;
    const double before = report.losses[epochs - 2];
    return before - report.losses[epochs - 1] < options_.stop_improvement * std::abs(before);
  }

  const BlockTask& task_;
  const Block block_;
  const Ptq161Options& options_;
  const BlockSurvey& survey_;
  const std::vector<MixedLinear>& linears_;
  ProgressSink& progress_;
  const BlockLossOptions loss_;
  int64_t step_ = 0;
  int64_t told_ = 0;  // to progress_
};

}  // namespace

TrainingReport TrainBlock(const BlockTask& task, const Ptq161Options& options,
                          const BlockSurvey& survey, const std::vector<MixedLinear>& linears,
                          ParameterBuffer& buffer, ProgressSink& progress) {
  const at::Tensor start = buffer.values().clone();
  int64_t failed = 0, told = 0;
  const auto attempt = [&](double rate_scale) {
    at::Tensor values = buffer.values();
    values.copy_(start);
    GainTrainer trainer(task, options, survey, linears, progress);
    std::optional<TrainingReport> report = trainer.Run(buffer, rate_scale);
    failed = trainer.failed_step();
    told = trainer.told();
    return report;
  };
  if (auto report = AtLowerRates(attempt, [&] { progress.Extend(told); })) return *report;
  throw NonFiniteLoss(task.block.index,
                      StrCat("training step ", failed, " of ", options.epochs * task.x_q.size(0)),
                      "the loss or what is trained is not finite, also at a hundredth of the "
                      "learning rates; check the checkpoint's "
                      "weights and the calibration text, or lower gain_rate and rank_one_rate");
}

}  // namespace quantry::engine
