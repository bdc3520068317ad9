#pragma once

#include <ATen/ATen.h>

#include "worker/engine/quant/grid.h"

namespace quantry::engine {

// The grid of every group by its own error: of both ends of the min/max range
// shrunk by p = 1.00, 0.99 .. 0.21, the first with the least sum |W - q(W)|^2.4
// (spec: baselines.md 1.2, `mse`). Shapes and rounding as MinMaxGrid.
GroupGrid SearchGrid(const at::Tensor& weight, const GridSpec& spec, at::ScalarType scale_dtype);

}  // namespace quantry::engine
