#include "worker/engine/model/architectures/architectures.h"

namespace quantry::engine::architectures {

// Llama without biases; a sliding window unless config.json says null.
const Architecture& Mistral() {
  static const Architecture row = [] {
    Architecture mistral = LlamaLike("mistral");
    for (LinearSpec& linear : mistral.linears) linear.bias = BiasRule::kNever;
    mistral.schema.attention_bias_key.clear();
    mistral.schema.mlp_bias_key.clear();
    mistral.schema.default_kv_heads = 8;
    mistral.schema.default_sliding_window = 4096;
    return mistral;
  }();
  return row;
}

}  // namespace quantry::engine::architectures
