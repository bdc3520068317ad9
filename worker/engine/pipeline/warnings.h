#pragma once

#include <string>
#include <vector>

#include "worker/engine/pipeline/events.h"

namespace quantry::engine {

// Warnings about jobs that run to their end and mean little; each is empty when
// there is nothing to tell.

// Gains and scales that their storage could not hold (kClippedMetric).
std::string ClippedWarning(const std::vector<BlockReport>& blocks);

}  // namespace quantry::engine
