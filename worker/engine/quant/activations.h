#pragma once

#include <ATen/ATen.h>

namespace quantry::engine {

// How the input of every quantized linear is quantized while the model runs
// (spec: ActivationGrid in method.proto).
struct ActivationSpec {
  int bits = 16;  // 2 .. 8, or 16 = not at all

  bool enabled() const { return bits < 16; }
};

// Dynamic per-token fake quantization of x [..., in] (spec: tesseraq.md 1.2
// and 4.3): each token, a row of the last dimension, has its own asymmetric
// min/max grid,
//   s = max(hi - lo, 1e-5) / qmax, z = clamp(-round(lo / s), 0, qmax)
//   y = (clamp(round(x / s) + z, 0, qmax) - z) s
// The range always includes 0, so that a one-signed token is not clipped.
// 16 bits return x itself. The gradient is the identity (T27).
at::Tensor FakeQuantizeActivations(const at::Tensor& x, int bits);

// Throws INVALID_SPEC unless bits are 2 .. 8 or 16.
void CheckActivations(const ActivationSpec& spec);

}  // namespace quantry::engine
