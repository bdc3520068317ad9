#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "worker/engine/kernels/sign_product.h"
#include "worker/engine/methods/ptq161/binarize.h"
#include "worker/engine/methods/ptq161/options.h"
#include "worker/engine/methods/ptq161/parameter_buffer.h"
#include "worker/engine/nn/block.h"
#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

// One linear under training (spec: ptq161.md 3.2):
//   W'[:, salient] = fixed,  W'[:, others] = r1 r2^T * (alpha S + mu)
// Codes, signs and mu never change; alpha = gain_unit * gain, r1 and r2 are
// views into the block's ParameterBuffer. All on the task's device.
struct MixedLinear {
  std::string name;
  at::Tensor bias;     // fp32 [n] or undefined
  at::Tensor salient;  // int64 [k], ascending
  at::Tensor others;   // int64 [m - k], ascending
  SalientGrid grid;
  at::Tensor codes;         // uint8 [n, k]
  at::Tensor fixed;         // fp32 [n, k], dequantized codes; set by SetFixed
  at::Tensor padded_fixed;  // and columns of zeros, up to whole vectors: products are faster
  at::Tensor signs8;        // uint8 [n, m - k], 1 where +1; set by SetSigns
  at::Tensor mean;          // mu fp32 [n]
  at::Tensor gain_unit;     // fp32 [n]: 1 (0 where alpha0 is), or alpha0 with relative_gain
  ComputeDtype compute = ComputeDtype::kFloat32;  // of its products

  // Trained, and where the backward pass leaves their gradients.
  Parameter gain;    // [n]
  Parameter row;     // r1 [n]
  Parameter column;  // r2 [m - k]

  // How products with the signs are made: by table lookup where the device has
  // it and factors are fp32, else (null) with a matrix in mean's type.
  std::shared_ptr<const SignProduct> lookup;
  at::Tensor signs;  // [n, m - k], -1 or 1; undefined with lookup

  // salient (int64, ascending) and others of `all` columns.
  void SetSalient(const at::Tensor& columns, int64_t all, const at::Device& device);

  void SetFixed(const at::Tensor& weight);

  // Call once mean and compute are set. [n, m - k], 1 where +1.
  void SetSigns(const at::Tensor& uint8_signs);

  at::Tensor RowGain() const { return gain_unit * gain.value * row.value; }  // A
  at::Tensor RowOffset() const { return mean * row.value; }                  // C
  // dA, dC and dr2 to the Parameters' gradients: alpha, r1, r2 (spec 3.3).
  void TakeGradients(const SignProduct::Scales& slopes) const;

  at::Tensor Multiply(const at::Tensor& a, const at::Tensor& b) const;  // a b, see `compute`

  // A, C, r2 rounded to what is stored: the result. CPU tensors.
  QuantizedLinear Finish() const;
  // How many of A, C, r2 and the 4-bit scales lie beyond fp16: Finish stores
  // its largest value, 65504, in their place.
  int64_t Clipped() const;
};

// Mask, grid, codes, signs and means of every linear of a block; `salient` by
// linear. Parameters get their places in `buffer`, all alphas before all r's.
std::vector<MixedLinear> MakeMixedLinears(const Block& block, const Ptq161Options& options,
                                          const std::vector<at::Tensor>& salient,
                                          ParameterBuffer& buffer);

// y = x W'^T + bias in the factored form (spec: ptq161.md 3.4), x fp32
// [.., m] split by the caller into x[salient] and x[others], flat [T, k] and
// [T, m - k]. Differentiable in x; the backward pass also writes the gradients
// of alpha, r1 and r2 to the linear's Parameters (so one product a step). No
// [n, m] gradient exists.
at::Tensor MixedProduct(const MixedLinear& linear, const at::Tensor& x_salient,
                        const at::Tensor& x_others);

// The split: x [.., m] -> {[T, k], [T, m - k]}. Differentiable.
std::pair<at::Tensor, at::Tensor> SplitColumns(const at::Tensor& x, const MixedLinear& linear);

// The forward hook of a whole block. Linears with the same input share the
// split; make one hook a forward pass. `linears` must outlive it.
LinearForward MixedForward(const Block& block, const std::vector<MixedLinear>& linears);

}  // namespace quantry::engine
