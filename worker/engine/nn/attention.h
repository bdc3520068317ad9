#pragma once

#include <ATen/ATen.h>

#include "worker/engine/nn/products.h"

namespace quantry::engine {

// Whether FusedCausalAttention may be used: fp32 on a CPU with AVX2 and FMA.
bool FusedAttentionApplies(const at::Tensor& q, const at::Tensor& k);

// Causal softmax(q k^T / sqrt(d)) v, tile by tile, scores never in memory as a
// whole; differentiable, the backward pass makes the scores again. Exact to a
// few units in the last place of each product.
//   q [batch, heads, tokens, d], k and v [batch, kv_heads, tokens, d]
// Each kv head serves heads / kv_heads queries. Returns [batch, heads, tokens,
// d] as a view of [batch, tokens, heads, d]. The sums run in the same order
// whatever the thread count. With bfloat16, factors of its products, forward and
// backward, are rounded to it where the CPU multiplies it and d >= 16, only there.
at::Tensor FusedCausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                ComputeDtype compute = ComputeDtype::kFloat32);

}  // namespace quantry::engine
