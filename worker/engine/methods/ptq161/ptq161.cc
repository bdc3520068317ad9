#include "worker/engine/methods/ptq161/ptq161.h"

#include <algorithm>

#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/ptq161/learned_rounding.h"
#include "worker/engine/methods/ptq161/mask.h"
#include "worker/engine/methods/ptq161/mixed_linear.h"
#include "worker/engine/methods/ptq161/train.h"
#include "worker/engine/methods/working_bytes.h"
#include "worker/engine/reconstruct/progressive_rounding.h"

namespace quantry::engine {
namespace {

// While signs and codes are learned: gradients of every share; and in host memory the assembled
// weights, both parts of every row and, of the gradients' sum, those of the parts.
int64_t LearningBytes(const Architecture& architecture, const ModelConfig& config, int64_t windows,
                      const at::Device& device) {
  constexpr int64_t kParts = 2;
  const int64_t weights = BlockWeights(architecture, config);
  const int64_t copy = weights * static_cast<int64_t>(sizeof(float));
  const int64_t gradients = GradientBytes(architecture, config, windows, device);
  if (!device.is_cpu()) return gradients;
  return copy +
         ProgressiveRounding::StateBytes(weights, kParts * BlockGroups(architecture, config, -1)) +
         std::max(gradients, 2 * copy);
}

int64_t TrainedNumbers(const Block& block) {
  int64_t count = 0;
  for (const Linear& linear : block.linears) {
    count += 2 * linear.weight.size(0) + linear.weight.size(1);
  }
  return count;
}

void AddMetrics(const TrainingReport& report, std::map<std::string, double>& metrics) {
  if (report.losses.empty()) return;
  metrics["train_loss_first"] = report.losses.front();
  metrics["train_loss_last"] = report.losses.back();
  metrics["train_epochs"] = static_cast<double>(report.losses.size());
  metrics["mse_first"] = report.mse_first;
  metrics["mse_last"] = report.mse_last;
  metrics["cosine_first"] = report.cosine_first;
  metrics["cosine_last"] = report.cosine_last;
  if (report.cosines_turned > 0) {
    metrics["cosines_turned"] = static_cast<double>(report.cosines_turned);
  }
  if (report.retries > 0) metrics["retries"] = report.retries;
}

}  // namespace

int64_t Ptq161::Steps(const Architecture& architecture, const ModelConfig&,
                      const StreamShape& stream) const {
  return Batches(stream) + LearnedRoundingSteps(options_) + options_.epochs * stream.windows +
         static_cast<int64_t>(architecture.linears.size());
}

int64_t Ptq161::WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                             const StreamShape& stream, const at::Device& device) const {
  const bool learned = options_.learn_rounding;
  const int64_t windows = learned ? LearnedRoundingBatch(options_, stream.windows) : 1;
  const int64_t learning = LearningBytes(architecture, config, windows, device) +
                           RoundedBytes(architecture, config, options_.compute, windows, device);
  return (learned ? learning : 0) + KeptActivationBytes(config, stream, windows) +
         2 * TargetBytes(config, stream, device);
}

void Ptq161::Check(const StreamShape& stream) const {
  CheckBatchSize(options_.rounding_batch, stream, "rounding_batch");
}

int64_t Ptq161::SalientColumns(int64_t in_features) const {
  return SalientCount(options_, in_features);
}

MethodResult Ptq161::Quantize(const BlockTask& task, ProgressSink& progress) const {
  const BlockSurvey survey = SurveyBlock(task, options_.statistic, progress);
  ParameterBuffer buffer(TrainedNumbers(task.block), task.device);
  const bool again = options_.first_pass_mask && task.first_pass;
  const std::vector<at::Tensor> salient =
      again ? ColumnsOfFirstPass(task.first_pass()) : SelectColumns(task.block, options_, survey);
  std::vector<MixedLinear> linears = MakeMixedLinears(task.block, options_, salient, buffer);
  MethodResult result;
  if (options_.learn_rounding) {
    const LearnedRoundingReport report =
        LearnRounding(task, options_, survey, linears, buffer, progress);
    result.metrics["rounding_loss_first"] = report.loss_first;
    result.metrics["rounding_loss_last"] = report.loss_last;
    result.metrics["sign_flips"] = report.sign_flips;
    result.metrics["code_flips"] = report.code_flips;
  }
  AddMetrics(TrainBlock(task, options_, survey, linears, buffer, progress), result.metrics);
  result.block.index = task.block.index;
  result.block.dense = DenseTensors(task.block, task.dense_dtypes);
  double negative = 0;
  for (const MixedLinear& linear : linears) {
    QuantizedLinear& stored = result.block.linears.emplace_back(linear.Finish());
    negative += stored.mixed->row_gain.lt(0).sum().item<double>();
    result.metrics["salient." + linear.name] = static_cast<double>(stored.mixed->salient_columns());
    if (const int64_t clipped = linear.Clipped()) {
      result.metrics[kClippedMetric + linear.name] = static_cast<double>(clipped);
    }
    progress.Advance(1, linear.name);
  }
  result.metrics["negative_gains"] = negative;
  return result;
}

}  // namespace quantry::engine
