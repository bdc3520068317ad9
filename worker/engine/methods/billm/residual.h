#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace quantry::engine {

// Residual binarization (spec: baselines.md 4.1): `order` times, each row of
// what is left becomes mean + gain * sign over its masked entries, the signs
// those of (entry - mean), sign(0) = +1 so that one bit holds them.
struct Residual {
  at::Tensor values;              // fp32 [n, c], 0 outside the mask
  std::vector<at::Tensor> means;  // [n, 1] each, one an order; 0 for an empty row
  std::vector<at::Tensor> gains;  // [n, 1] each
  std::vector<at::Tensor> signs;  // fp32 [n, c] each, +1 or -1, 0 outside the mask
};

// weight: fp32 [n, c]; mask: bool [n, c].
Residual BinarizeResidual(const at::Tensor& weight, const at::Tensor& mask, int order);

}  // namespace quantry::engine
