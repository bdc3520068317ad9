#pragma once

#include "worker/engine/evaluation/evaluator.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/pipeline/progress.h"

namespace quantry::engine {

// Steps of a job, known from headers and window counts alone. `evaluation`:
// windows to evaluate, 0 = none.
StepPlan PlanSteps(const Job& job, const Checkpoint& checkpoint, const StreamShape& calibration,
                   const StreamShape& evaluation, const EvaluationOptions& options);

}  // namespace quantry::engine
