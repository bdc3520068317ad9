#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "worker/engine/quant/grid.h"

namespace quantry::engine {

// y = (clamp(round(w / s + v) + z, 0, qmax) - z) s, differentiable in w, s and v
// with the gradient of a straight-through round and a true clamp (spec:
// baselines.md 2.1):
//   inside the range  dy/dw = 1, dy/dv = s, dy/ds = round(w / s + v) - w / s
//   clipped           dy/dw = dy/dv = 0,    dy/ds = clamp(..) - z
// z has no gradient. w: fp32 [out, in]; s, z: [out, groups]; v: [out, in] or
// undefined (then 0). One autograd node: keeps w, v, s, z and nothing of their
// size besides.
at::Tensor TrainableQuantize(const at::Tensor& weight, const at::Tensor& scales,
                             const at::Tensor& zeros, const at::Tensor& offsets, int64_t qmax);

// Lowest and highest value of every group, at most and at least 0: [out, groups].
// Differentiable in `weight`.
struct GroupRange {
  at::Tensor lo;
  at::Tensor hi;
};
GroupRange RangeOfGroups(const at::Tensor& weight, const GridSpec& spec);

// The grid of ranges [lo, hi] as MinMaxGrid makes it, bit for bit: rounded
// scales, integer zero points; differentiable in lo and hi through the scales
// (rounding passes the gradient on).
GroupGrid TrainableGrid(const GroupRange& range, const GridSpec& spec, at::ScalarType scale_dtype);

}  // namespace quantry::engine
