#pragma once

#include <map>
#include <string>
#include <vector>

#include "worker/engine/methods/catalog.h"
#include "worker/engine/methods/method.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/pipeline/events.h"

namespace quantry::engine {

// Warnings about jobs that run to their end and mean little; each is empty when
// there is nothing to tell.

// A model pruned before: zeros among the weights to be quantized, for methods
// that have none among their levels. Reads them all, in their storage dtype.
std::string PrunedWarning(const MethodRow& method, const Checkpoint& checkpoint);

// Throws CheckStorable's error for a block that no output could hold, and counts
// its grids' scales at the end of their storage in its metrics (kClippedMetric),
// in the place of what was counted before.
void CheckStorage(const QuantizedBlock& block, std::map<std::string, double>& metrics);

// Gains and scales that their storage could not hold (kClippedMetric).
std::string ClippedWarning(const std::vector<BlockReport>& blocks);

// Linears that GPTQ could only round to nearest (kNearestMetric; spec: baselines.md 1.7).
std::string NearestWarning(const std::vector<BlockReport>& blocks);

}  // namespace quantry::engine
