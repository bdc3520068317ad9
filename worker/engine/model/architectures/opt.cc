#include "worker/engine/model/architectures/architectures.h"

namespace quantry::engine::architectures {
namespace {

ConfigSchema OptSchema() {
  ConfigSchema schema;
  schema.intermediate_size_key = "ffn_dim";
  schema.activation_key = "activation_function";
  schema.default_activation = "relu";
  schema.norm_eps_key.clear();
  schema.default_norm_eps = 1e-5;
  schema.attention_bias_key = "enable_bias";
  schema.default_attention_bias = true;
  schema.mlp_bias_key = "enable_bias";
  schema.default_mlp_bias = true;
  schema.default_tie_word_embeddings = true;
  schema.required_flags = {
      {"do_layer_norm_before", true, "norms after the residual sum (OPT-350m)"},
      {"layer_norm_elementwise_affine", true, "norms without weights"},
      {"_remove_final_layer_norm", false, "no final norm"},
  };
  // Otherwise project_in and project_out stand around the blocks (OPT-350m).
  schema.equal_to_hidden_size = {"word_embed_proj_dim"};
  return schema;
}

}  // namespace

// Learned positions, LayerNorm, plain MLP with biases.
const Architecture& Opt() {
  static const Architecture row = [] {
    Architecture opt;
    opt.name = "opt";
    opt.model_types = {"opt"};
    opt.schema = OptSchema();
    opt.prefixes = {"model.decoder.", "decoder."};
    opt.embedding = "embed_tokens.weight";
    opt.block_prefix = "layers.";
    opt.final_norm = "final_layer_norm";
    opt.head = "lm_head.weight";
    opt.positions = PositionKind::kLearned;
    opt.position_embedding = "embed_positions.weight";
    opt.position_offset = 2;
    opt.norm_kind = NormKind::kLayer;
    opt.gated_mlp = false;
    opt.linears = {
        {"self_attn.q_proj", LinearRole::kQuery, BiasRule::kAttentionBias},
        {"self_attn.k_proj", LinearRole::kKey, BiasRule::kAttentionBias},
        {"self_attn.v_proj", LinearRole::kValue, BiasRule::kAttentionBias},
        {"self_attn.out_proj", LinearRole::kAttentionOut, BiasRule::kAttentionBias},
        {"fc1", LinearRole::kUp, BiasRule::kMlpBias},
        {"fc2", LinearRole::kDown, BiasRule::kMlpBias},
    };
    opt.norms = {
        {"self_attn_layer_norm", NormRole::kAttentionInput},
        {"final_layer_norm", NormRole::kMlpInput},
    };
    opt.smoothing_groups = {
        {{0, 1, 2}, "self_attn_layer_norm", true, ComparedModule::kAttention, false},
        {{3}, "self_attn.v_proj", false, ComparedModule::kLinear, false},
        {{4}, "final_layer_norm", true, ComparedModule::kLinear, false},
        {{5}, "fc1", false, ComparedModule::kLinear, true},
    };
    return opt;
  }();
  return row;
}

}  // namespace quantry::engine::architectures
