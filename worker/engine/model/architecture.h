#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace quantry::engine {

// What a linear does in its block. Plain MLPs (OPT) have kUp and kDown only.
enum class LinearRole { kQuery, kKey, kValue, kAttentionOut, kGate, kUp, kDown };

// Where a norm sits. kQuery and kKey work on one head's width (Qwen3).
enum class NormRole { kAttentionInput, kMlpInput, kQuery, kKey };

enum class NormKind { kRms, kLayer };
enum class PositionKind { kRope, kLearned };

// Whether a linear has a bias: a fact of the architecture or a flag of
// config.json (ModelConfig::attention_bias, ModelConfig::mlp_bias).
enum class BiasRule { kNever, kAlways, kAttentionBias, kMlpBias };

// Module whose output AWQ compares while it searches a group's scales.
enum class ComparedModule { kAttention, kMlp, kLinear };

struct LinearSpec {
  std::string name;  // below the block: "self_attn.q_proj"
  LinearRole role;
  BiasRule bias;
};

struct NormSpec {
  std::string name;  // below the block: "input_layernorm"
  NormRole role;
};

// Linears which share one input, and the operation before them which can
// absorb the inverse of a per-channel scale on that input without changing the
// block's function (spec/tesseraq.md section 1.3).
struct SmoothingGroup {
  std::vector<int> linears;  // indices into Architecture::linears
  std::string previous;      // name of a norm or a linear below the block
  bool previous_is_norm = false;
  ComparedModule compared = ComparedModule::kLinear;
  bool through_activation = false;  // an activation stands between (OPT: fc1, ReLU, fc2)
};

// A boolean of config.json this code relies on.
struct RequiredFlag {
  std::string key;
  bool wanted;
  std::string reason;  // what the other value would mean
};

// How config.json of this architecture spells what ModelConfig holds, and
// what an absent key means (the defaults of Hugging Face's config classes).
struct ConfigSchema {
  std::string intermediate_size_key = "intermediate_size";
  std::string activation_key = "hidden_act";
  std::string default_activation = "silu";
  std::string norm_eps_key = "rms_norm_eps";  // empty: always default_norm_eps
  double default_norm_eps = 1e-6;
  std::string attention_bias_key = "attention_bias";  // empty: always the default
  bool default_attention_bias = false;
  std::string mlp_bias_key = "mlp_bias";
  bool default_mlp_bias = false;
  bool default_tie_word_embeddings = false;
  int64_t default_kv_heads = 0;  // 0: as many as attention heads
  int64_t default_head_dim = 0;  // 0: hidden_size / heads
  double default_rope_theta = 10000.0;
  int64_t default_sliding_window = 0;  // where config.json has no such key; null means none
  // sliding_window counts only where use_sliding_window is true.
  bool sliding_window_needs_flag = false;
  std::vector<RequiredFlag> required_flags;
  std::vector<std::string> equal_to_hidden_size;  // keys which, if present, must equal it
};

// One transformer family as data: names, order and flags. Rows live in
// architectures/*.cc, the table in architectures/catalog.cc; all are constant
// and live as long as the process.
struct Architecture {
  std::string name;                      // "llama"
  std::vector<std::string> model_types;  // model_type values of config.json
  ConfigSchema schema;
  // What may stand before the names below, the usual spelling first:
  // {"model.", ""}. A checkpoint uses one of them throughout.
  std::vector<std::string> prefixes;
  std::string embedding;     // below the prefix: "embed_tokens.weight"
  std::string block_prefix;  // below the prefix: "layers."
  std::string final_norm;    // below the prefix: "norm"
  std::string head;          // whole name: "lm_head.weight"
  PositionKind positions = PositionKind::kRope;
  std::string position_embedding;  // below the prefix, for kLearned
  int64_t position_offset = 0;     // rows skipped at its front (OPT: 2)
  NormKind norm_kind = NormKind::kRms;
  bool gated_mlp = true;
  std::vector<LinearSpec> linears;  // attention first, in the order of the forward pass
  std::vector<NormSpec> norms;
  std::vector<SmoothingGroup> smoothing_groups;  // in the order they are searched
  std::vector<std::string> ignored_suffixes;     // tensors without meaning: "rotary_emb.inv_freq"

  int LinearIndex(LinearRole role) const;  // -1 when there is none
  int NormIndex(NormRole role) const;      // -1 when there is none
};

// All supported architectures.
std::span<const Architecture* const> Architectures();

struct ModelConfig;

// [out, in] of a linear's weight.
struct LinearShape {
  int64_t out = 0;
  int64_t in = 0;
};
LinearShape ShapeOf(const ModelConfig& config, LinearRole role);
bool HasBias(const ModelConfig& config, const LinearSpec& linear);
int64_t SizeOf(const ModelConfig& config, NormRole role);  // elements of a norm

// The smoothing groups that change nothing in this model: those whose previous
// operation is as wide as the linears' input (with grouped-query attention
// v_proj is narrower than o_proj's input), and through an activation only where
// a positive scale passes it (ReLU).
std::vector<SmoothingGroup> UsableSmoothingGroups(const Architecture& architecture,
                                                  const ModelConfig& config);

// The row for a model_type of config.json; nullptr when it is unknown.
const Architecture* FindArchitecture(const std::string& model_type);

}  // namespace quantry::engine
