#include "worker/engine/model/architectures/architectures.h"

namespace quantry::engine::architectures {

// Queries and keys pass an RMS norm over each head before the rotation.
const Architecture& Qwen3() {
  static const Architecture row = [] {
    Architecture qwen3 = LlamaLike("qwen3");
    for (LinearSpec& linear : qwen3.linears) {
      if (linear.bias == BiasRule::kMlpBias) linear.bias = BiasRule::kNever;
    }
    qwen3.norms = {
        {"input_layernorm", NormRole::kAttentionInput},
        {"self_attn.q_norm", NormRole::kQuery},
        {"self_attn.k_norm", NormRole::kKey},
        {"post_attention_layernorm", NormRole::kMlpInput},
    };
    qwen3.schema.mlp_bias_key.clear();
    qwen3.schema.default_head_dim = 128;
    qwen3.schema.sliding_window_needs_flag = true;
    return qwen3;
  }();
  return row;
}

}  // namespace quantry::engine::architectures
