#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

namespace quantry::engine {

// What the factors of a training step's matrix products are rounded to; sums
// are fp32 either way; a device may round a product to the same type once.
enum class ComputeDtype { kFloat32, kBfloat16 };

// Whether `device` multiplies bfloat16 itself (AVX512_BF16; a GPU). Where it
// does not, factors are rounded to bfloat16 and multiplied in fp32: the same
// training at no gain in time.
bool MultipliesBfloat16(const at::Device& device);

// What was asked for; nothing = bfloat16 where a CPU multiplies it, float32 elsewhere: on a GPU
// too, until somebody has measured one.
using ComputeChoice = std::optional<ComputeDtype>;
ComputeDtype ComputeOn(const at::Device& device, ComputeChoice choice);

// `value`, fp32, as a factor of Product: rounded to `dtype`, in that type where
// the device multiplies it.
at::Tensor Factor(const at::Tensor& value, ComputeDtype dtype);

// a b of two matrices made by Factor on one device, not in bfloat16.
at::Tensor Product(const at::Tensor& a, const at::Tensor& b);

// x W^T + b, as at::linear: x [..., in], weight [out, in], bias [out] or undefined,
// all fp32; differentiable in all three, the backward pass's products in `dtype`
// too. Keeps the weight and, as a factor, x for it.
at::Tensor LinearProduct(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         ComputeDtype dtype);

// The same of one input with several weights and as many biases, an output each: in bfloat16
// one product for all.
std::vector<at::Tensor> LinearProducts(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                                       const std::vector<at::Tensor>& biases, ComputeDtype dtype);

// silu(x gate^T) * (x up^T), products in bfloat16, weights [out, in] of one shape: as
// LinearProducts and GatedSilu would have it, in less memory traffic where the CPU has kernels for
// it.
at::Tensor GatedSiluProducts(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& up);

}  // namespace quantry::engine
