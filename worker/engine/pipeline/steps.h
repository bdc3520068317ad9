#pragma once

#include <vector>

#include "worker/engine/evaluation/evaluator.h"
#include "worker/engine/export/exporter.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/pipeline/progress.h"

namespace quantry::engine {

// Steps of a job, known from headers and window counts alone. `evaluation`:
// windows to evaluate, 0 = none.
StepPlan PlanSteps(const Job& job, const Checkpoint& checkpoint, const StreamShape& calibration,
                   const StreamShape& evaluation, const EvaluationOptions& options);

// Writes into a plan what the method says its linears would take packed
// (WeightKind::kValues).
void StateValueBits(const Method& method, std::vector<PlannedTensor>& plan);

}  // namespace quantry::engine
