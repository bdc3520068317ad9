#pragma once

#include <ATen/ATen.h>

#include "worker/engine/model/architecture.h"
#include "worker/engine/quant/activations.h"
#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

struct ClippedWeight {
  at::Tensor weight;  // fp32 [out, in], clamped
  at::Tensor errors;  // fp32 [out, groups], mean squared partial output of the winner
  at::Tensor levels;  // int64 [out, groups], index of the winning shrink level, 0 = unclipped
};

// Query and key projections are never clipped (spec: tesseraq.md 1.4).
bool MayClip(LinearRole role);

// Tokens a clip search looks at, and how the linear will see them.
struct ClipSamples {
  at::Tensor samples;  // fp32 [tokens, in]
  ActivationSpec activations = {};
};

// For every (row, group): of the ranges p * [min, max], p = 1.00, 0.95 .. 0.55,
// the one whose fake-quantized weight, on quantized activations where the job
// has them, changes the group's partial output x_g . w_g least. The weight is
// clamped to the winner (mode v1). Symmetric grids shrink +-absmax.
ClippedWeight SearchClip(const at::Tensor& weight, const ClipSamples& inputs, const GridSpec& grid,
                         at::ScalarType scale_dtype);

// What the pieces of a search that are in work at once on `device` hold at most,
// of a linear of this shape and `tokens` samples; on the host one a thread.
int64_t ClipSearchBytes(const LinearShape& shape, int64_t tokens, int64_t group_size,
                        const at::Device& device);

}  // namespace quantry::engine
