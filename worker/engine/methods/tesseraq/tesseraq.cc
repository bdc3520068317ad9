#include "worker/engine/methods/tesseraq/tesseraq.h"

#include <algorithm>
#include <cmath>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/methods/awq/clip_search.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/training/block_loss.h"
#include "worker/engine/methods/working_bytes.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/reconstruct/block_objective.h"

namespace quantry::engine {
namespace {

AwqOptions Switched(const TesseraqOptions& options) {
  AwqOptions awq = options.awq;
  awq.group_size = options.group_size;
  if (options.init == RoundingInit::kNone || options.init == RoundingInit::kSignround) {
    awq.search_scales = awq.search_clip = false;
  }
  // Rotated channels are alike: there is nothing to scale.
  if (options.init == RoundingInit::kQuarot) awq.search_scales = false;
  return awq;
}

// Everything rounded to nearest on the starting grid.
TrainableTensors Nearest(const BlockTask& task, const Block& block,
                         const std::vector<GroupGrid>& grids) {
  TrainableTensors nearest;
  for (size_t i = 0; i < grids.size(); ++i) {
    QuantizedLinear linear;
    linear.codes = RoundToGrid(block.linears[i].weight, task.grid, grids[i]);
    linear.scales = grids[i].scales;
    linear.zeros = grids[i].zeros;
    nearest.weights.push_back(linear.Dequantize());
  }
  return nearest;
}

void AddFigures(const std::vector<SoftRounding>& linears, std::map<std::string, double>& metrics) {
  double weights = 0;
  double flips = 0;
  double smallest = 1e30;
  double largest = 0;
  for (const SoftRounding& linear : linears) {
    const auto count = static_cast<double>(linear.rows() * linear.columns());
    weights += count;
    flips += count * linear.flip_ratio();
    const auto [low, high] = at::aminmax(linear.factors());
    smallest = std::min(smallest, low.item<double>());
    largest = std::max(largest, high.item<double>());
  }
  metrics["flip_ratio"] = flips / weights;
  metrics["scale_factor_min"] = smallest;
  metrics["scale_factor_max"] = largest;
}

}  // namespace

int64_t Tesseraq::Steps(const Architecture& architecture, const ModelConfig& config,
                        const StreamShape& stream) const {
  return StartSteps(architecture, config, stream) + 2 * Batches(stream) +
         Batches({options_.rounding.held_out, stream.length}) +
         ProgressiveRounding::Steps(options_.rounding);
}

int64_t Tesseraq::StartSteps(const Architecture& architecture, const ModelConfig& config,
                             const StreamShape& stream) const {
  if (options_.init == RoundingInit::kOmniquant) {
    return LearnClippingSteps(options_.omniquant, options_.bits, stream);
  }
  if (options_.init == RoundingInit::kSignround) {
    return options_.signround.iterations;
  }
  return AwqSearchSteps(Switched(options_), architecture, config, stream);
}

int64_t Tesseraq::StartBytes(const Architecture& architecture, const ModelConfig& config,
                             const StreamShape& stream, const at::Device& device) const {
  if (options_.init == RoundingInit::kOmniquant) {
    return LearnClippingBytes(options_.omniquant, config, stream, device);
  }
  if (options_.init == RoundingInit::kSignround) {
    return TuneRangesBytes(options_.signround, architecture, config, stream, device);
  }
  return AwqSearchBytes(Switched(options_), architecture, config, stream, device);
}

int64_t Tesseraq::WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                               const StreamShape& stream, const at::Device& device) const {
  const int64_t windows = options_.rounding.batch_size;
  const int64_t state = ProgressiveRounding::StateBytes(
      BlockWeights(architecture, config), BlockGroups(architecture, config, options_.group_size));
  const int64_t rounding = (device.is_cpu() ? state : 0) +  // in host memory, as targets are
                           GradientBytes(architecture, config, windows, device) +
                           RoundedBytes(architecture, config, options_.compute, windows, device) +
                           KeptActivationBytes(config, stream, windows);
  return std::max(StartBytes(architecture, config, stream, device), rounding) +
         TargetBytes(config, stream, device);
}

StreamShape Tesseraq::DefaultCalibration() const {
  return options_.calibration.windows > 0 ? options_.calibration : Method::DefaultCalibration();
}

const ModelTuningOptions* Tesseraq::Tuning() const {
  return options_.tuning.steps > 0 ? &options_.tuning : nullptr;
}

void Tesseraq::Check(const StreamShape& stream) const {
  const int64_t held_out = options_.rounding.held_out;
  if (options_.rounding.batch_size + held_out <= stream.windows) return;
  if (held_out > 0) {
    const std::string batch = std::to_string(options_.rounding.batch_size);
    throw UserError("INVALID_SPEC",
                    StrCat("held_out_samples ", held_out, " leaves less than a batch of ", batch,
                           " of the ", stream.windows,
                           " calibration windows: ask for more samples, a smaller batch_size, or "
                           "hold out fewer"),
                    {{"held_out_samples", std::to_string(held_out)},
                     {"batch_size", batch},
                     {"windows", std::to_string(stream.windows)}});
  }
  CheckBatchSize(options_.rounding.batch_size, stream);
}

Tesseraq::Start Tesseraq::Initialize(const BlockTask& task, const at::Tensor& targets,
                                     ProgressSink& progress) const {
  Start start;
  std::vector<ClipFactors> clips;
  if (options_.init == RoundingInit::kOmniquant) {
    OmniquantResult learned = LearnClipping(task, options_.omniquant, progress);
    start.block = std::move(learned.block);
    clips = std::move(learned.clips);
    start.metrics = {{"clip_loss_first", learned.first_loss},
                     {"clip_loss_last", learned.last_loss}};
    if (learned.retries > 0) start.metrics["start_retries"] = learned.retries;
  } else {
    AwqBlock found = SearchAwq(task, Switched(options_), task.x_q, progress);
    start.block = std::move(found.block);
    start.metrics = std::move(found.metrics);
  }
  if (options_.init == RoundingInit::kSignround) TuneStart(task, targets, start, progress);
  for (size_t i = start.grids.size(); i < start.block.linears.size(); ++i) {
    const at::Tensor& weight = start.block.linears[i].weight;
    // Queries and keys keep their range, as with AWQ (spec: tesseraq.md 1.5).
    const bool clipped = !clips.empty() && MayClip(task.block.architecture->linears[i].role);
    start.grids.push_back(clipped ? ClippedGrid(weight, clips[i], task.grid, task.scale_dtype)
                                  : MinMaxGrid(weight, task.grid, task.scale_dtype));
  }
  start.block.activations = task.activations;
  start.block.compute = ComputeOn(task.device, options_.compute);
  return start;
}

void Tesseraq::TuneStart(const BlockTask& task, const at::Tensor& targets, Start& start,
                         ProgressSink& progress) const {
  SignroundGrids tuned = TuneRanges(task, targets, options_.signround, progress);
  start.grids = std::move(tuned.grids);
  start.metrics["range_loss_first"] = tuned.first_loss;
  start.metrics["range_loss_best"] = tuned.best_loss;
  if (tuned.retries > 0) start.metrics["start_retries"] = tuned.retries;
}

MethodResult Tesseraq::Quantize(const BlockTask& task, ProgressSink& progress) const {
  const at::Tensor targets = MakeBlockTargets(task, {}, progress).outputs;
  const Start start = Initialize(task, targets, progress);
  BlockObjective objective(start.block, task.rope, task.x_q, targets, task.device);
  objective.LimitTokens(options_.token_energy_limit);
  if (options_.input_mixing > 0) objective.MixInputs(task.x_fp, options_.input_mixing);
  MethodResult result;
  result.metrics = start.metrics;
  const double loss_init = MeasureStart(task, start, objective, result.metrics);
  progress.Advance(Batches({task.x_q.size(0), task.x_q.size(1)}), "loss of the start");
  TrainedBlock trained = Trained(task, start);
  ProgressiveRoundingOptions rounding = options_.rounding;
  rounding.seed = task.seed;
  if (options_.repeat_worse_stages) rounding.most_loss = loss_init;
  const RoundingReport report = ProgressiveRounding(task.block.index, objective, rounding, progress)
                                    .Run(trained, task.stages);
  result.metrics["loss_soft"] = report.loss_soft;
  result.metrics["retries"] = report.retries;
  if (rounding.held_out > 0) {
    Guard(objective, trained, result.metrics);
    progress.Advance(Batches({rounding.held_out, task.x_q.size(1)}), "loss on held-out windows");
  }
  AddFigures(trained.linears, result.metrics);
  result.block = Finish(task, start.block, trained);
  return result;
}

TrainedBlock Tesseraq::Trained(const BlockTask& task, const Start& start) const {
  TrainedBlock trained;
  for (size_t i = 0; i < start.grids.size(); ++i) {
    trained.linears.emplace_back(start.block.linears[i].weight, start.grids[i], task.grid,
                                 options_.scale_curve, options_.rounding_reach);
  }
  if (options_.rounding.dense_rate == 0) return trained;
  Block copy = start.block;
  for (const at::Tensor* tensor : DenseParameters(copy)) {
    trained.dense.push_back(tensor->to(at::kCPU, at::kFloat).clone());
  }
  return trained;
}

double Tesseraq::MeasureStart(const BlockTask& task, const Start& start,
                              const BlockObjective& objective,
                              std::map<std::string, double>& metrics) const {
  const TrainableTensors nearest = Nearest(task, start.block, start.grids);
  const BlockObjective::Losses losses = objective.LossesOf(nearest, 0, objective.windows());
  metrics["loss_init"] = losses.all;
  if (options_.rounding.held_out > 0) {
    metrics["held_out_loss_init"] = HeldOutLoss(objective, nearest);
  }
  return losses.limited;
}

double Tesseraq::HeldOutLoss(const BlockObjective& objective, const TrainableTensors& at) const {
  return objective.Loss(at, objective.windows() - options_.rounding.held_out, objective.windows());
}

void Tesseraq::Guard(const BlockObjective& objective, TrainedBlock& trained,
                     std::map<std::string, double>& metrics) const {
  TrainableTensors learned;
  for (const SoftRounding& linear : trained.linears) learned.weights.push_back(linear.weight());
  learned.dense = trained.dense;
  const double learned_loss = HeldOutLoss(objective, learned);
  // Also where it is not a number.
  const bool keep_init = !(learned_loss <= metrics.at("held_out_loss_init"));
  if (std::isfinite(learned_loss)) metrics["held_out_loss_learned"] = learned_loss;
  metrics["init_kept"] = keep_init ? 1 : 0;
  if (!keep_init) return;
  for (SoftRounding& linear : trained.linears) linear.HardenToNearest();
  trained.dense.clear();
}

QuantizedBlock Tesseraq::Finish(const BlockTask& task, const Block& start,
                                const TrainedBlock& trained) {
  Block final = start;
  const std::vector<at::Tensor*> dense = DenseParameters(final);
  for (size_t i = 0; i < trained.dense.size(); ++i) *dense[i] = trained.dense[i];
  QuantizedBlock block;
  block.index = task.block.index;
  for (size_t i = 0; i < trained.linears.size(); ++i) {
    Linear& linear = final.linears[i];
    if (linear.bias.defined()) {
      linear.bias =
          RoundToStorage(linear.bias, StorageDtype(task.dense_dtypes, linear.name + ".bias"));
    }
    block.linears.push_back(trained.linears[i].Finish(linear.name, linear.bias, task.scale_dtype));
  }
  block.dense = DenseTensors(final, task.dense_dtypes);
  return block;
}

}  // namespace quantry::engine
