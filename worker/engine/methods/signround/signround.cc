#include "worker/engine/methods/signround/signround.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "worker/engine/base/non_finite.h"
#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/training/block_loss.h"
#include "worker/engine/methods/training/trainable_quantize.h"
#include "worker/engine/methods/working_bytes.h"
#include "worker/engine/reconstruct/token_weights.h"

namespace quantry::engine {
namespace {

constexpr int kMostRetries = 3;

// Trainables of one linear.
struct LinearParameters {
  at::Tensor offsets;  // [out, in], -0.5 .. 0.5
  at::Tensor lower;    // [out, groups], 0 .. 1
  at::Tensor upper;
};

int64_t WindowsPerStep(const SignroundOptions& options, int64_t windows) {
  constexpr int64_t kDefaultBatch = 8;
  return std::min(options.batch_size == 0 ? kDefaultBatch : options.batch_size, windows);
}

// One block in training.
class SignTrainer {
 public:
  SignTrainer(const BlockTask& task, const at::Tensor& targets, const SignroundOptions& options,
              ProgressSink& progress)
      : task_(task),
        options_(options),
        progress_(progress),
        input_(options.quantized_input ? task.x_q : task.x_fp),
        targets_(targets),
        roots_(RootTokenWeights(targets, options.token_energy_limit)),
        random_(task.seed * 0x100000001b3ULL + task.block.index) {
    for (const Linear& linear : task.block.linears) {
      ranges_.push_back(RangeOfGroups(linear.weight, task.grid));
      const at::Tensor& lo = ranges_.back().lo;
      current_.push_back({at::zeros_like(linear.weight).requires_grad_(true),
                          at::ones_like(lo).requires_grad_(options.tune_ranges),
                          at::ones_like(lo).requires_grad_(options.tune_ranges)});
    }
    Keep();
  }

  void Run() {
    const double rate =
        options_.learning_rate > 0 ? options_.learning_rate : 1.0 / options_.iterations;
    const double range_rate =
        options_.range_learning_rate > 0 ? options_.range_learning_rate : rate;
    for (int i = 0; i < options_.iterations; ++i) {
      const double left = rate_share_ * (1.0 - static_cast<double>(i) / options_.iterations);
      Step(i, rate * left, range_rate * left);
      progress_.Advance(1, "tuning rounding");
    }
  }

  QuantizedLinear Finish(size_t i) const {
    const at::NoGradGuard no_grad;
    const Linear& linear = task_.block.linears[i];
    const GroupGrid grid = GridOf(i, best_[i]);
    const int64_t group = task_.grid.GroupSizeFor(linear.weight.size(1));
    const auto grouped = [&](const at::Tensor& x) {
      return x.reshape({x.size(0), x.size(1) / group, group});
    };
    // As TrainableQuantize rounds, bit for bit.
    const at::Tensor codes = grouped(linear.weight)
                                 .div(grid.scales.unsqueeze(-1))
                                 .add_(grouped(best_[i].offsets))
                                 .round_()
                                 .add_(grid.zeros.unsqueeze(-1))
                                 .clamp_(0.0, static_cast<double>(task_.grid.qmax()))
                                 .reshape(linear.weight.sizes())
                                 .to(at::kByte);
    return MakeQuantizedLinear(linear.name, codes, grid, linear.bias,
                               {task_.grid, task_.scale_dtype});
  }

  SignroundGrids Grids() const {
    const at::NoGradGuard no_grad;
    SignroundGrids result = {{}, first_loss_, best_loss_, retries_};
    for (size_t i = 0; i < best_.size(); ++i) result.grids.push_back(GridOf(i, best_[i]));
    return result;
  }

  std::map<std::string, double> Metrics() const {
    std::map<std::string, double> metrics = {{"first_loss", first_loss_},
                                             {"best_loss", best_loss_},
                                             {"best_step", static_cast<double>(best_step_)}};
    if (retries_ > 0) metrics["retries"] = retries_;
    return metrics;
  }

 private:
  GroupGrid GridOf(size_t i, const LinearParameters& parameters) const {
    const GroupRange range = {ranges_[i].lo * parameters.lower, ranges_[i].hi * parameters.upper};
    return TrainableGrid(range, task_.grid, task_.scale_dtype);
  }

  Block Trial() const {
    Block trial = task_.block;
    trial.activations = task_.activations;
    trial.compute = ComputeOn(task_.device, options_.compute);
    for (size_t i = 0; i < trial.linears.size(); ++i) {
      const GroupGrid grid = GridOf(i, current_[i]);
      at::Tensor& weight = trial.linears[i].weight;
      weight = TrainableQuantize(weight, grid.scales, grid.zeros, current_[i].offsets,
                                 task_.grid.qmax());
    }
    return trial;
  }

  // Parameters to differentiate by; ranges only where they are tuned.
  std::vector<at::Tensor> Parameters() const {
    std::vector<at::Tensor> all;
    for (const LinearParameters& parameters : current_) {
      all.push_back(parameters.offsets);
      if (!options_.tune_ranges) continue;
      all.push_back(parameters.lower);
      all.push_back(parameters.upper);
    }
    return all;
  }

  void Step(int step, double rate, double range_rate) {
    const at::AutoGradMode grad(true);
    const int64_t windows = input_.size(0);
    const at::Tensor index =
        at::tensor(DrawDistinct(windows, WindowsPerStep(options_, windows), random_), at::kLong);
    const auto part = [&](const at::Tensor& x) {
      return x.index_select(0, index).to(task_.device);
    };
    const at::Tensor output = Trial().Forward(part(input_), task_.rope);
    at::Tensor error = output - part(targets_);
    if (roots_.defined()) error = error * part(roots_);
    const at::Tensor loss = error.square().mean();
    const auto value = loss.item<double>();
    if (!std::isfinite(value)) return GoBack(value);
    if (step == 0) first_loss_ = value;
    if (value < best_loss_) {
      best_loss_ = value;
      best_step_ = step;
      Keep();
    }
    Move(Gradients(loss, Parameters()), rate, range_rate);
  }

  // To the best so far, from where steps of half the size go on.
  void GoBack(double loss) {
    if (best_loss_ == std::numeric_limits<double>::infinity()) {
      throw NonFiniteLoss(task_.block.index, "tuning rounding",
                          StrCat("the loss is ", loss,
                                 " before anything is tuned; check the checkpoint's weights and "
                                 "the calibration text"));
    }
    if (++retries_ > kMostRetries) {
      throw NonFiniteLoss(task_.block.index, "tuning rounding",
                          StrCat("the loss is ", loss,
                                 ", and lower rates did not help; lower the learning rate, "
                                 "or check the checkpoint's weights and the calibration text"));
    }
    rate_share_ /= 2;
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < current_.size(); ++i) {
      current_[i].offsets.copy_(best_[i].offsets);
      current_[i].lower.copy_(best_[i].lower);
      current_[i].upper.copy_(best_[i].upper);
    }
  }

  void Move(const std::vector<at::Tensor>& gradients, double rate, double range_rate) {
    const at::NoGradGuard no_grad;
    size_t next = 0;
    const auto move = [&](at::Tensor& value, double step, double low, double high) {
      const at::Tensor& gradient = gradients.at(next++);
      if (gradient.defined()) value.add_(gradient.sign(), -step).clamp_(low, high);
    };
    for (LinearParameters& parameters : current_) {
      move(parameters.offsets, rate, -0.5, 0.5);
      if (!options_.tune_ranges) continue;
      move(parameters.lower, range_rate, 0.0, 1.0);
      move(parameters.upper, range_rate, 0.0, 1.0);
    }
  }

  void Keep() {
    best_.clear();
    for (const LinearParameters& parameters : current_) {
      best_.push_back({parameters.offsets.detach().clone(), parameters.lower.detach().clone(),
                       parameters.upper.detach().clone()});
    }
  }

  const BlockTask& task_;
  const SignroundOptions& options_;
  ProgressSink& progress_;
  at::Tensor input_;
  at::Tensor targets_;
  at::Tensor roots_;  // of the tokens' weights, where they differ
  Random random_;
  std::vector<GroupRange> ranges_;
  std::vector<LinearParameters> current_;
  std::vector<LinearParameters> best_;
  double first_loss_ = 0;
  double best_loss_ = std::numeric_limits<double>::infinity();
  int best_step_ = 0;
  int retries_ = 0;  // times it went back
  double rate_share_ = 1;
};

}  // namespace

SignroundGrids TuneRanges(const BlockTask& task, const at::Tensor& targets,
                          const SignroundOptions& options, ProgressSink& progress) {
  SignTrainer trainer(task, targets, options, progress);
  trainer.Run();
  return trainer.Grids();
}

// Gradients of offsets and weights, beside the block, its trial, and offsets twice; all windows
// are one share.
int64_t TuneRangesBytes(const SignroundOptions& options, const Architecture& architecture,
                        const ModelConfig& config, const StreamShape& stream,
                        const at::Device& device) {
  const int64_t windows = WindowsPerStep(options, stream.windows);
  return 2 * static_cast<int64_t>(sizeof(float)) * BlockWeights(architecture, config) +
         RoundedBytes(architecture, config, options.compute, 1, device) +
         KeptActivationBytes(config, stream, windows);
}

int64_t Signround::Steps(const Architecture& architecture, const ModelConfig&,
                         const StreamShape& stream) const {
  return BlockTargetSteps(stream) + options_.iterations +
         static_cast<int64_t>(architecture.linears.size());
}

int64_t Signround::WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                                const StreamShape& stream, const at::Device& device) const {
  return TuneRangesBytes(options_, architecture, config, stream, device) +
         TargetBytes(config, stream, device);
}

void Signround::Check(const StreamShape& stream) const {
  CheckBatchSize(options_.batch_size, stream);
}

MethodResult Signround::Quantize(const BlockTask& task, ProgressSink& progress) const {
  SignTrainer trainer(task, MakeBlockTargets(task, {}, progress).outputs, options_, progress);
  trainer.Run();
  MethodResult result;
  result.block.index = task.block.index;
  result.block.dense = DenseTensors(task.block, task.dense_dtypes);
  result.metrics = trainer.Metrics();
  for (size_t i = 0; i < task.block.linears.size(); ++i) {
    result.block.linears.push_back(trainer.Finish(i));
    progress.Advance(1, task.block.linears[i].name);
  }
  return result;
}

}  // namespace quantry::engine
