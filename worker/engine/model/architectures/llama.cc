#include "worker/engine/model/architectures/architectures.h"

namespace quantry::engine::architectures {

Architecture LlamaLike(const std::string& name) {
  Architecture row;
  row.name = name;
  row.model_types = {name};
  row.prefixes = {"model.", ""};
  row.embedding = "embed_tokens.weight";
  row.block_prefix = "layers.";
  row.final_norm = "norm";
  row.head = "lm_head.weight";
  row.linears = {
      {"self_attn.q_proj", LinearRole::kQuery, BiasRule::kAttentionBias},
      {"self_attn.k_proj", LinearRole::kKey, BiasRule::kAttentionBias},
      {"self_attn.v_proj", LinearRole::kValue, BiasRule::kAttentionBias},
      {"self_attn.o_proj", LinearRole::kAttentionOut, BiasRule::kAttentionBias},
      {"mlp.gate_proj", LinearRole::kGate, BiasRule::kMlpBias},
      {"mlp.up_proj", LinearRole::kUp, BiasRule::kMlpBias},
      {"mlp.down_proj", LinearRole::kDown, BiasRule::kMlpBias},
  };
  row.norms = {
      {"input_layernorm", NormRole::kAttentionInput},
      {"post_attention_layernorm", NormRole::kMlpInput},
  };
  row.smoothing_groups = {
      {{0, 1, 2}, "input_layernorm", true, ComparedModule::kAttention, false},
      {{3}, "self_attn.v_proj", false, ComparedModule::kLinear, false},
      {{4, 5}, "post_attention_layernorm", true, ComparedModule::kMlp, false},
      {{6}, "mlp.up_proj", false, ComparedModule::kLinear, false},
  };
  // Written by old releases of transformers; follows from config.json.
  row.ignored_suffixes = {"rotary_emb.inv_freq"};
  return row;
}

// Llama 1, 2, 3, SmolLM and whatever else says model_type llama.
const Architecture& Llama() {
  static const Architecture row = LlamaLike("llama");
  return row;
}

}  // namespace quantry::engine::architectures
