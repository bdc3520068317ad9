#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/engine/model/architecture.h"
#include "worker/engine/model/config.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {

// in_features of every linear of a block, for CheckGrid.
std::vector<NamedWidth> LinearWidths(const Architecture& architecture, const ModelConfig& config);

}  // namespace quantry::engine
