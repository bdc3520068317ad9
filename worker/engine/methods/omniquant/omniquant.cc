#include "worker/engine/methods/omniquant/omniquant.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "worker/engine/base/non_finite.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/omniquant/transform.h"
#include "worker/engine/methods/training/block_loss.h"
#include "worker/engine/methods/training/trainable_quantize.h"
#include "worker/engine/methods/working_bytes.h"
#include "worker/engine/reconstruct/adam.h"
#include "worker/engine/reconstruct/retries.h"
#include "worker/engine/reconstruct/token_weights.h"

namespace quantry::engine {
namespace {

// sigmoid(4) = 0.982: training starts close to min/max.
constexpr double kFirstLogit = 4.0;
constexpr int kEpochs = 20;
constexpr int kEpochsAtTwoBits = 40;

int Epochs(const OmniquantOptions& options, int bits) {
  if (options.epochs > 0) return options.epochs;
  return bits <= 2 ? kEpochsAtTwoBits : kEpochs;
}

bool LearnsTransform(const OmniquantOptions& options, const BlockTask& task) {
  const bool layer_norm = task.block.architecture->norm_kind == NormKind::kLayer;
  return options.learn_transform.value_or(task.activations.enabled() || layer_norm);
}

GroupRange Clipped(const GroupRange& range, const ClipFactors& clip) {
  return {range.lo * clip.lower, range.hi * clip.upper};
}

// One block in training.
class ClipTrainer {
 public:
  ClipTrainer(const BlockTask& task, const OmniquantOptions& options, ProgressSink& progress)
      : task_(task), options_(options), progress_(progress) {
    BlockTargetOptions targets;
    targets.average_with_prefix = options.augmented_loss.value_or(task.grid.bits <= 2);
    targets.input_middle = LearnsTransform(options, task) && task.activations.enabled();
    targets_ = MakeBlockTargets(task, targets, progress);
    roots_ = RootTokenWeights(targets_.outputs, options.token_energy_limit);
    for (const Linear& linear : task.block.linears) {
      ranges_.push_back(RangeOfGroups(linear.weight, task.grid));
    }
  }

  OmniquantResult Run() {
    const auto attempt = [&](double rate_scale) {
      Start(rate_scale);
      return Train();
    };
    if (auto result = AtLowerRates(attempt, [&] { progress_.Extend(steps_); })) return *result;
    throw NonFiniteLoss(task_.block.index, "learning to clip",
                        "the loss or what is trained is not finite, also at a hundredth of the "
                        "learning rates; check the checkpoint's weights and the calibration text, "
                        "or lower learning_rate and transform_learning_rate");
  }

 private:
  // Everything that is trained, as it begins.
  void Start(double rate_scale) {
    adam_ = Adam();
    logits_.clear();
    steps_ = 0;
    for (const GroupRange& range : ranges_) {
      const auto logits = [&] { return at::full_like(range.lo, kFirstLogit).requires_grad_(true); };
      logits_.push_back({logits(), logits()});
      adam_.Add(logits_.back().upper, options_.learning_rate * rate_scale);
      adam_.Add(logits_.back().lower, options_.learning_rate * rate_scale);
    }
    if (!LearnsTransform(options_, task_)) return;
    transform_ = std::make_unique<EquivalentTransform>(
        task_.block, targets_.input_max, options_.transform_alpha, options_.tie_rope_pairs,
        targets_.input_middle);
    for (const at::Tensor& parameter : transform_->parameters()) {
      adam_.Add(parameter, options_.transform_learning_rate * rate_scale);
    }
  }

  // nullopt when a loss or what was trained is not finite.
  std::optional<OmniquantResult> Train() {
    OmniquantResult result;
    const int epochs = Epochs(options_, task_.grid.bits);
    for (int epoch = 0; epoch < epochs; ++epoch) {
      const double loss = RunEpoch();
      if (!std::isfinite(loss)) return std::nullopt;
      if (epoch == 0) result.first_loss = loss;
      result.last_loss = loss;
    }
    const std::vector<at::Tensor> trained = adam_.tensors();
    if (!std::all_of(trained.begin(), trained.end(), AllFinite)) return std::nullopt;
    const at::NoGradGuard no_grad;
    if (transform_) transform_->KeepAway();  // as every step began
    result.block = transform_ ? transform_->Bake(task_.block, task_.dense_dtypes) : task_.block;
    for (const ClipFactors& logits : logits_) {
      result.clips.push_back({logits.upper.detach().sigmoid(), logits.lower.detach().sigmoid()});
    }
    return result;
  }

  // Mean loss of all steps; ends at one that is not finite.
  double RunEpoch() {
    const int64_t windows = task_.x_q.size(0);
    double sum = 0;
    for (int64_t first = 0; first < windows; first += options_.batch_size) {
      const int64_t count = std::min<int64_t>(options_.batch_size, windows - first);
      const double loss = Step(first, count);
      if (!std::isfinite(loss)) return loss;
      sum += loss * static_cast<double>(count);
      ++steps_;
      progress_.Advance(1, "learning to clip");
    }
    return sum / static_cast<double>(windows);
  }

  double Step(int64_t first, int64_t count) {
    const at::AutoGradMode grad(true);
    if (transform_) transform_->KeepAway();
    const at::Tensor output =
        Trial().Forward(task_.x_q.narrow(0, first, count).to(task_.device), task_.rope);
    const at::Tensor wanted = targets_.outputs.narrow(0, first, count).to(task_.device);
    at::Tensor error = output - wanted;
    if (roots_.defined()) error = error * roots_.narrow(0, first, count).to(task_.device);
    const at::Tensor loss = error.square().mean();
    const auto value = loss.item<double>();
    if (!std::isfinite(value)) return value;
    adam_.Step(Gradients(loss, adam_.tensors()));
    return value;
  }

  // The quantized block of the current parameters.
  Block Trial() const {
    Block trial = transform_ ? transform_->Apply(task_.block) : task_.block;
    trial.activations = task_.activations;
    for (size_t i = 0; i < trial.linears.size(); ++i) {
      at::Tensor& weight = trial.linears[i].weight;
      const GroupRange range = transform_ ? RangeOfGroups(weight, task_.grid) : ranges_[i];
      const ClipFactors clip = {logits_[i].upper.sigmoid(), logits_[i].lower.sigmoid()};
      const GroupGrid grid = TrainableGrid(Clipped(range, clip), task_.grid, task_.scale_dtype);
      weight = TrainableQuantize(weight, grid.scales, grid.zeros, {}, task_.grid.qmax());
    }
    return trial;
  }

  const BlockTask& task_;
  const OmniquantOptions& options_;
  ProgressSink& progress_;
  BlockTargets targets_;
  at::Tensor roots_;  // of the tokens' weights, where they differ
  std::unique_ptr<EquivalentTransform> transform_;
  std::vector<GroupRange> ranges_;  // of weights before anything transforms them
  std::vector<ClipFactors> logits_;
  Adam adam_;
  int64_t steps_ = 0;  // since the start
};

}  // namespace

int64_t LearnClippingSteps(const OmniquantOptions& options, int bits, const StreamShape& stream) {
  const int64_t steps = (stream.windows + options.batch_size - 1) / options.batch_size;
  return BlockTargetSteps(stream) + Epochs(options, bits) * steps;
}

int64_t LearnClippingBytes(const OmniquantOptions& options, const ModelConfig& config,
                           const StreamShape& stream, const at::Device& device) {
  const int64_t windows = std::min<int64_t>(options.batch_size, stream.windows);
  return KeptActivationBytes(config, stream, windows) + TargetBytes(config, stream, device);
}

OmniquantResult LearnClipping(const BlockTask& task, const OmniquantOptions& options,
                              ProgressSink& progress) {
  return ClipTrainer(task, options, progress).Run();
}

GroupGrid ClippedGrid(const at::Tensor& weight, const ClipFactors& clip, const GridSpec& spec,
                      at::ScalarType scale_dtype) {
  const GroupRange range = Clipped(RangeOfGroups(weight, spec), clip);
  return GridOfRange(range.lo, range.hi, spec, scale_dtype);
}

int64_t Omniquant::Steps(const Architecture& architecture, const ModelConfig&,
                         const StreamShape& stream) const {
  return LearnClippingSteps(options_, bits_, stream) +
         static_cast<int64_t>(architecture.linears.size());
}

// The block, transformed and quantized, and gradients are within four copies of it.
int64_t Omniquant::WorkingBytes(const Architecture&, const ModelConfig& config,
                                const StreamShape& stream, const at::Device& device) const {
  return LearnClippingBytes(options_, config, stream, device);
}

void Omniquant::Check(const StreamShape& stream) const {
  CheckBatchSize(options_.batch_size, stream);
}

MethodResult Omniquant::Quantize(const BlockTask& task, ProgressSink& progress) const {
  const OmniquantResult learned = LearnClipping(task, options_, progress);
  MethodResult result;
  result.block.index = task.block.index;
  result.block.dense = DenseTensors(learned.block, task.dense_dtypes);
  result.metrics = {{"first_epoch_loss", learned.first_loss},
                    {"last_epoch_loss", learned.last_loss}};
  if (learned.retries > 0) result.metrics["retries"] = learned.retries;
  for (size_t i = 0; i < learned.clips.size(); ++i) {
    const Linear& linear = learned.block.linears[i];
    const GroupGrid grid =
        ClippedGrid(linear.weight, learned.clips[i], task.grid, task.scale_dtype);
    result.block.linears.push_back(
        MakeQuantizedLinear(linear.name, RoundToGrid(linear.weight, task.grid, grid), grid,
                            linear.bias, {task.grid, task.scale_dtype}));
    progress.Advance(1, linear.name);
  }
  return result;
}

}  // namespace quantry::engine
