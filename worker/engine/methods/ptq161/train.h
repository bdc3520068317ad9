#pragma once

#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/methods/ptq161/mask.h"
#include "worker/engine/methods/ptq161/mixed_linear.h"

namespace quantry::engine {

// How the block's loss moved: means over an epoch's samples.
struct TrainingReport {
  std::vector<double> losses;  // one an epoch
  double mse_first = 0, mse_last = 0;
  double cosine_first = 0, cosine_last = 0;
  int64_t cosines_turned = 0;  // BlockLoss::turned of all steps
  int retries = 0;             // starts over after a loss that was not finite
};

// Trains alpha, r1 and r2 of all linears of a block together, one sample a
// step in order, towards both targets (spec: ptq161.md 4.2). Reports
// epochs * windows steps. A loss that is not finite starts the block over with
// a tenth of the learning rates, twice at most; then throws NON_FINITE_LOSS
// with block and step.
TrainingReport TrainBlock(const BlockTask& task, const Ptq161Options& options,
                          const BlockSurvey& survey, const std::vector<MixedLinear>& linears,
                          ParameterBuffer& buffer, ProgressSink& progress);

}  // namespace quantry::engine
