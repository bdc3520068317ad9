#include "worker/engine/pipeline/steps.h"

#include <algorithm>

#include "worker/engine/methods/batches.h"
#include "worker/engine/pipeline/restoration.h"
#include "worker/engine/reconstruct/model_backward.h"
#include "worker/engine/reconstruct/model_tuning.h"

namespace quantry::engine {
namespace {

constexpr double kHeadShare = 1.3;  // an evaluation step against its blocks alone
// A training step through the whole model against its forward pass: that pass
// twice, the backward pass, and weights built twice.
constexpr double kTrainingShare = 5;

}  // namespace

StepPlan PlanSteps(const Job& job, const Checkpoint& checkpoint, const StreamShape& calibration,
                   const StreamShape& evaluation, const EvaluationOptions& options) {
  StepPlan plan;
  plan.blocks = static_cast<int>(checkpoint.config().num_layers);
  plan.calibrating = Batches(calibration);
  plan.per_block = job.method->Steps(checkpoint.architecture(), checkpoint.config(), calibration) +
                   Batches(calibration) + 1;
  if (const ModelTuningOptions* tuning = job.method->Tuning()) {
    plan.tuning = tuning->steps * PassSteps(plan.blocks);
    plan.tuning_weight = kTrainingShare * static_cast<double>(tuning->batch_size * plan.blocks) /
                         static_cast<double>(PassSteps(plan.blocks)) /
                         static_cast<double>(std::max<int64_t>(calibration.windows, 1));
  }
  plan.packing = 2 * static_cast<int64_t>(job.outputs.size()) * plan.blocks;
  plan.preprocessing = RestorationSteps(job, checkpoint, calibration, evaluation, options);
  if (evaluation.windows == 0) return plan;
  plan.evaluating =
      EvaluationSteps(checkpoint, evaluation.windows, evaluation.length, true, options);
  const auto tokens = static_cast<double>(2 * evaluation.windows * evaluation.length * plan.blocks);
  const auto calibrated =
      static_cast<double>(std::max<int64_t>(calibration.windows * calibration.length, 1));
  plan.evaluating_weight =
      kHeadShare * tokens / static_cast<double>(std::max<int64_t>(plan.evaluating, 1)) / calibrated;
  return plan;
}

void StateValueBits(const Method& method, std::vector<PlannedTensor>& plan) {
  for (PlannedTensor& tensor : plan) {
    if (tensor.kind == PlannedTensor::Kind::kLinear) {
      tensor.value_bits = method.ValueBits(tensor.shape);
    }
  }
}

}  // namespace quantry::engine
