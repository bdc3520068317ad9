#include "worker/engine/methods/ptq161/learned_rounding.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "worker/engine/base/non_finite.h"
#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/reconstruct/block_objective.h"
#include "worker/engine/reconstruct/progressive_rounding.h"
#include "worker/engine/reconstruct/rounding_schedule.h"
#include "worker/engine/reconstruct/soft_rounding.h"

namespace quantry::engine {
namespace {

constexpr int kMostStageRetries = 3;
constexpr double kScaleDecay = 1e-4;  // of the scale logits (spec: tesseraq.md 3)
constexpr double kLeastGain = 1e-8;
constexpr ScaleCurve kCurve = ScaleCurve::kRectifiedSigmoid;
constexpr GridSpec kSignGrid = {1, -1, false};
constexpr GridSpec kCodeGrid = {MixedBinaryWeight::kCodeBits, -1, false};

// One linear's weight as two soft roundings, in host memory. A row of signs is
// a grid of one bit: W = r2 (u 2A + C - A), u in {0, 1}; its scale 2A moves,
// C - A stays.
class SoftLinear {
 public:
  SoftLinear(const at::Tensor& weight, MixedLinear& linear, std::vector<SoftRounding>& parts)
      : linear_(linear),
        parts_(parts),
        salient_(linear.salient.cpu()),
        others_(linear.others.cpu()),
        empty_(weight.eq(0.0).all(1).cpu()),
        level_(linear.RowGain().eq(0.0).cpu()),
        weight_(at::empty(weight.sizes(), at::kFloat)),
        gain_(linear.RowGain().abs().clamp_min(kLeastGain).cpu()),
        low_((linear.RowOffset().cpu() - gain_).unsqueeze(1)) {
    const at::Tensor source = weight.cpu();
    if (salient_.numel() > 0) {
      codes_ = static_cast<int>(parts.size());
      const GroupGrid grid = {linear.grid.scales.unsqueeze(1), linear.grid.zeros.unsqueeze(1)};
      parts.emplace_back(source.index_select(1, salient_), grid, kCodeGrid, kCurve);
    }
    if (others_.numel() > 0) {
      signs_ = static_cast<int>(parts.size());
      const at::Tensor scales = gain_.mul(2.0).unsqueeze(1);
      const at::Tensor levels = source.index_select(1, others_).div_(ColumnGain()).sub_(low_);
      parts.emplace_back(levels, GroupGrid{scales, at::zeros_like(scales)}, kSignGrid, kCurve);
    }
  }

  // W' [n, m] of where the parts are now; the same storage throughout.
  const at::Tensor& Assemble() {
    if (codes_ >= 0) weight_.index_copy_(1, salient_, parts_[codes_].weight());
    if (signs_ >= 0) weight_.index_copy_(1, others_, Levels().mul_(ColumnGain()));
    return weight_;
  }

  // Gradients of the parts, and of r2, from dL/dW'.
  void Split(const at::Tensor& gradient, std::vector<at::Tensor>& part_gradients) const {
    if (codes_ >= 0) part_gradients[codes_] = gradient.index_select(1, salient_);
    if (signs_ < 0) return;
    at::Tensor others = gradient.index_select(1, others_);
    Parameter column = linear_.column;
    column.grad.copy_((others * Levels()).sum(0));
    part_gradients[signs_] = others.mul_(ColumnGain());
  }

  // Puts what was learned into the linear. Returns the flipped {signs, codes}.
  std::pair<double, double> Finish(bool relative_gain) {
    const at::Device device = linear_.signs8.device();
    std::pair<double, double> flips;
    if (codes_ >= 0) {
      QuantizedLinear learned = parts_[codes_].Finish("", {}, at::kHalf);
      learned.codes = at::where(empty_.unsqueeze(1), linear_.codes.cpu(), learned.codes);
      flips.second = learned.codes.ne(linear_.codes.cpu()).sum().item<double>();
      linear_.codes = learned.codes.to(device);
      linear_.grid.scales = learned.scales.squeeze(1).to(device);
      linear_.SetFixed(learned.Dequantize().to(device));
    }
    if (signs_ < 0) return flips;
    const at::Tensor up = parts_[signs_].Finish("", {}, at::kHalf).codes.to(device);
    flips.first = up.ne(linear_.signs8).sum().item<double>();
    linear_.SetSigns(up);
    const at::Tensor gain = gain_.mul(parts_[signs_].factors().squeeze(1));
    const at::Tensor mean = low_.squeeze(1).add(gain);
    linear_.mean = at::where(level_, linear_.RowOffset().cpu(), mean).to(device);
    const at::Tensor unit = relative_gain ? gain : at::ones_like(gain);
    linear_.gain_unit = unit.masked_fill(level_, 0.0).to(device);
    linear_.gain.value.copy_(relative_gain ? at::ones_like(gain) : gain);
    linear_.row.value.fill_(1.0);
    return flips;
  }

 private:
  at::Tensor ColumnGain() const { return linear_.column.value.cpu(); }
  // u 2A + C - A, a fresh tensor.
  at::Tensor Levels() const { return parts_[signs_].weight() + low_; }

  MixedLinear& linear_;
  std::vector<SoftRounding>& parts_;
  at::Tensor salient_;
  at::Tensor others_;
  at::Tensor empty_;  // bool [n], rows of zeros: they keep their codes
  at::Tensor level_;  // bool [n], rows of one value: their A is 0, kLeastGain here, and stays 0
  at::Tensor weight_;
  at::Tensor gain_;  // A at the start [n]
  at::Tensor low_;   // C - A [n, 1]
  int codes_ = -1;   // places in parts_, -1 = no such columns
  int signs_ = -1;
};

// The whole block: parts of all linears in one list, r2 with an Adam of its own.
class BlockRounding {
 public:
  BlockRounding(const BlockTask& task, const Ptq161Options& options, const BlockSurvey& survey,
                std::vector<MixedLinear>& linears, ParameterBuffer& buffer)
      : task_(task),
        options_(options),
        objective_(task.block.Computing(options.compute), task.rope, task.x_q, survey.target_fp,
                   task.device),
        linears_(linears),
        buffer_(buffer) {
    objective_.LimitTokens(options.token_energy_limit);
    parts_.reserve(2 * linears.size());
    for (size_t i = 0; i < linears.size(); ++i) {
      soft_.emplace_back(task.block.linears[i].weight, linears[i], parts_);
    }
  }

  // Freezes all but `soft_fraction`, then trains; halves `rate_share` and starts
  // the stage over when a loss or what is trained is not finite. Returns the mean loss.
  double RunStage(int stage, double soft_fraction, double& rate_share, ProgressSink& progress) {
    const Snapshot before = Take();
    int64_t taken = 0;
    for (int attempt = 0; attempt <= kMostStageRetries; ++attempt, rate_share /= 2) {
      if (attempt > 0) Restore(before);
      progress.Extend(taken);
      taken = 0;
      for (SoftRounding& part : parts_) part.Harden(soft_fraction);
      const double loss = Train(stage, rate_share, taken, progress);
      if (std::isfinite(loss) && IsSound()) return loss;
    }
    throw NonFiniteLoss(task_.block.index, StrCat("stage ", stage + 1, " of learning signs"),
                        "the loss or what is trained is not finite, and lower rates did not help; "
                        "check the calibration text, or lower rounding_rate");
  }

  // {signs, codes} that were flipped, as shares.
  std::pair<double, double> Finish() {
    double flips[2] = {0, 0}, all[2] = {0, 0};
    for (SoftRounding& part : parts_) part.HardenAll();
    for (size_t i = 0; i < linears_.size(); ++i) {
      const auto [signs, codes] = soft_[i].Finish(options_.relative_gain);
      flips[0] += signs;
      flips[1] += codes;
      all[0] += static_cast<double>(linears_[i].signs8.numel());
      all[1] += static_cast<double>(linears_[i].codes.numel());
    }
    return {flips[0] / std::max(all[0], 1.0), flips[1] / std::max(all[1], 1.0)};
  }

 private:
  struct Snapshot {
    at::Tensor values;
    std::vector<std::pair<at::Tensor, at::Tensor>> logits;
  };

  // Whether training can go on from here: the loss is that before the last step.
  bool IsSound() const {
    return AllFinite(buffer_.values()) &&
           std::all_of(parts_.begin(), parts_.end(),
                       [](const SoftRounding& part) { return part.IsSound(); });
  }

  Snapshot Take() const {
    Snapshot snapshot{buffer_.values().clone(), {}};
    for (const SoftRounding& part : parts_) {
      snapshot.logits.emplace_back(part.logits(), part.scale_logits());
    }
    return snapshot;
  }

  void Restore(const Snapshot& snapshot) {
    at::Tensor values = buffer_.values();
    values.copy_(snapshot.values);
    for (size_t i = 0; i < parts_.size(); ++i) {
      parts_[i].Restore(snapshot.logits[i].first, snapshot.logits[i].second);
    }
  }

  // Mean loss of a stage; not finite when it broke down, after `taken` steps.
  double Train(int stage, double rate_share, int64_t& taken, ProgressSink& progress) {
    StepRates rates;
    rates.rounding = options_.rounding_rate * rate_share;
    rates.scale = options_.rounding_scale_rate * rate_share;
    rates.scale_weight_decay = kScaleDecay;
    Adam columns = OptimizerOf(buffer_);
    double sum = 0;
    for (int64_t step = 0; step < options_.rounding_steps; ++step) {
      const double loss = Step(stage * options_.rounding_steps + step, rates, columns, rate_share);
      if (!std::isfinite(loss)) return loss;
      sum += loss;
      ++taken;
      progress.Advance(1, "learning signs");
    }
    return sum / static_cast<double>(options_.rounding_steps);
  }

  double Step(int64_t number, const StepRates& rates, Adam& columns, double rate_share) {
    TrainableTensors current;
    for (SoftLinear& linear : soft_) current.weights.push_back(linear.Assemble());
    const uint64_t seed =
        Random(task_.seed ^ (uint64_t{0x5161} << 32) ^ static_cast<uint64_t>(task_.block.index))
            .Next() +
        static_cast<uint64_t>(number);
    const int64_t batch = LearnedRoundingBatch(options_, objective_.windows());
    const BlockObjective::Result result =
        objective_.Gradients(DrawWindows(objective_.windows(), batch, seed), current);
    if (!std::isfinite(result.loss)) return result.loss;
    at::Tensor grads = buffer_.grads();
    grads.zero_();
    std::vector<at::Tensor> gradients(parts_.size());
    for (size_t i = 0; i < soft_.size(); ++i) soft_[i].Split(result.weight_gradients[i], gradients);
    StepAll(parts_, gradients, rates);
    columns.Step({grads}, rate_share);
    return result.loss;
  }

  const BlockTask& task_;
  const Ptq161Options& options_;
  BlockObjective objective_;
  std::vector<MixedLinear>& linears_;
  ParameterBuffer& buffer_;
  std::vector<SoftRounding> parts_;
  std::vector<SoftLinear> soft_;
};

}  // namespace

LearnedRoundingReport LearnRounding(const BlockTask& task, const Ptq161Options& options,
                                    const BlockSurvey& survey, std::vector<MixedLinear>& linears,
                                    ParameterBuffer& buffer, ProgressSink& progress) {
  BlockRounding rounding(task, options, survey, linears, buffer);
  LearnedRoundingReport report;
  double rate_share = 1;
  int stage = 0;
  for (const double soft_fraction : ScheduleOf(options.rounding_stages)) {
    const double loss = rounding.RunStage(stage, soft_fraction, rate_share, progress);
    if (stage == 0) report.loss_first = loss;
    report.loss_last = loss;
    ++stage;
  }
  std::tie(report.sign_flips, report.code_flips) = rounding.Finish();
  return report;
}

int64_t LearnedRoundingSteps(const Ptq161Options& options) {
  return options.learn_rounding ? int64_t{options.rounding_stages} * options.rounding_steps : 0;
}

int64_t LearnedRoundingBatch(const Ptq161Options& options, int64_t windows) {
  constexpr int64_t kDefaultBatch = 4;
  return std::min(options.rounding_batch == 0 ? kDefaultBatch : options.rounding_batch, windows);
}

}  // namespace quantry::engine
