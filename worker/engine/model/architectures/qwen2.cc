#include "worker/engine/model/architectures/architectures.h"

namespace quantry::engine::architectures {

// Qwen 2 and 2.5: q, k and v always have a bias, nothing else has.
const Architecture& Qwen2() {
  static const Architecture row = [] {
    Architecture qwen2 = LlamaLike("qwen2");
    for (LinearSpec& linear : qwen2.linears) {
      const bool qkv = linear.role == LinearRole::kQuery || linear.role == LinearRole::kKey ||
                       linear.role == LinearRole::kValue;
      linear.bias = qkv ? BiasRule::kAlways : BiasRule::kNever;
    }
    qwen2.schema.attention_bias_key.clear();
    qwen2.schema.default_attention_bias = true;
    qwen2.schema.mlp_bias_key.clear();
    qwen2.schema.sliding_window_needs_flag = true;
    return qwen2;
  }();
  return row;
}

}  // namespace quantry::engine::architectures
