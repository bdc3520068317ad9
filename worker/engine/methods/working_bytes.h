#pragma once

#include <algorithm>
#include <cstdint>

#include "worker/engine/methods/method.h"
#include "worker/engine/model/architecture.h"
#include "worker/engine/model/config.h"
#include "worker/engine/nn/products.h"
#include "worker/engine/reconstruct/over_shares.h"

namespace quantry::engine {

// Parts of Method::WorkingBytes that methods which train a block share.

// Weights of a block's linears.
inline int64_t BlockWeights(const Architecture& architecture, const ModelConfig& config) {
  int64_t weights = 0;
  for (const LinearSpec& linear : architecture.linears) {
    const LinearShape shape = ShapeOf(config, linear.role);
    weights += shape.out * shape.in;
  }
  return weights;
}

// Groups of a block's linears; group_size -1 = one a row.
inline int64_t BlockGroups(const Architecture& architecture, const ModelConfig& config,
                           int64_t group_size) {
  int64_t groups = 0;
  for (const LinearSpec& linear : architecture.linears) {
    const LinearShape shape = ShapeOf(config, linear.role);
    groups += shape.out * (group_size > 0 ? shape.in / group_size : 1);
  }
  return groups;
}

// Gradients of a block's weights in a step over `windows` windows: each share of
// them has its own until they are summed.
inline int64_t GradientBytes(const Architecture& architecture, const ModelConfig& config,
                             int64_t windows, const at::Device& device) {
  return Shares(device, windows) * BlockWeights(architecture, config) *
         static_cast<int64_t>(sizeof(float));
}

// What products in `compute` make of a linear's weight on the way, in each share
// of a step over `windows` windows: nothing, or its values rounded, in both types.
// Where a CPU chooses, as much as one that multiplies bfloat16 holds: another machine may count.
inline int64_t RoundedBytes(const Architecture& architecture, const ModelConfig& config,
                            ComputeChoice compute, int64_t windows, const at::Device& device) {
  const ComputeDtype most = device.is_cpu() ? ComputeDtype::kBfloat16 : ComputeDtype::kFloat32;
  if (compute.value_or(most) == ComputeDtype::kFloat32) return 0;
  constexpr int64_t kBytesAWeight = 2 + 4;
  int64_t largest = 0;
  for (const LinearSpec& linear : architecture.linears) {
    const LinearShape shape = ShapeOf(config, linear.role);
    largest = std::max(largest, shape.out * shape.in);
  }
  return Shares(device, windows) * largest * kBytesAWeight;
}

// Outputs the block is trained towards: a stream, in host memory wherever the
// block is computed; no device but the CPU has to hold it.
inline int64_t TargetBytes(const ModelConfig& config, const StreamShape& stream,
                           const at::Device& device) {
  if (!device.is_cpu()) return 0;
  return stream.windows * stream.length * config.hidden_size * static_cast<int64_t>(sizeof(float));
}

// Activations that autograd keeps for a step over `windows` windows, in tensors
// as wide as the widest; of attention every probability once, which a CPU with
// AVX2 makes anew instead (nn/attention.cc).
inline int64_t KeptActivationBytes(const ModelConfig& config, const StreamShape& stream,
                                   int64_t windows) {
  constexpr int64_t kTensors = 12;
  const int64_t widest =
      std::max({config.intermediate_size, config.hidden_size, config.query_size()});
  const int64_t of_a_token = kTensors * widest + config.num_heads * stream.length;
  return windows * stream.length * of_a_token * static_cast<int64_t>(sizeof(float));
}

}  // namespace quantry::engine
