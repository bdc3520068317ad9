#pragma once

#include <ATen/ATen.h>

namespace quantry::engine {

// silu(gate) * up in one pass over memory, differentiable; the backward pass
// makes the sigmoid again. Shapes equal, any device.
at::Tensor GatedSilu(const at::Tensor& gate, const at::Tensor& up);

// x / sqrt(mean(x^2) + eps) * weight over the last dimension, in one pass over
// memory, differentiable in both. x [..., n] fp32, weight [n].
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// Rotates pairs (c, c + d/2) of the last dimension by the angles of `cos` and
// `sin` [tokens, d]; x [batch, heads, tokens, d]. Differentiable in x.
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace quantry::engine
