#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "worker/engine/model/architecture.h"
#include "worker/engine/model/config.h"

namespace quantry::engine {

// Cosines and sines of rotary positions 0..positions-1 in Hugging Face's
// half-split order (first half of a head's channels pairs with the second).
// Undefined tensors for architectures with learned positions. fp32.
struct RopeTable {
  at::Tensor cos;  // [positions, head_dim]
  at::Tensor sin;  // [positions, head_dim]

  bool defined() const { return cos.defined(); }

  // Rotates x [batch, heads, tokens, head_dim], whose first token stands at
  // position `first`; first + tokens <= positions.
  at::Tensor Apply(const at::Tensor& x, int64_t first = 0) const;
  RopeTable To(const at::Device& device) const;
};

RopeTable MakeRopeTable(const Architecture& architecture, const ModelConfig& config,
                        int64_t positions, const at::Device& device = at::kCPU);

}  // namespace quantry::engine
