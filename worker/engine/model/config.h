#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace quantry::engine {

struct Architecture;

enum class Activation { kSilu, kRelu, kGelu, kGeluTanh };

// Change of the rotary frequencies for contexts longer than trained.
struct RopeScaling {
  enum class Kind { kNone, kLinear, kLlama3 };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;  // llama3 only, as the next two
  double high_freq_factor = 4.0;
  int64_t original_max_positions = 8192;
};

// config.json of a checkpoint, every number within the bounds of kConfigLimits
// in config.cc. Products of two sizes fit int64 by far.
struct ModelConfig {
  std::string model_type;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  int64_t sliding_window = 0;  // tokens attended to; 0 = all
  double norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  Activation activation = Activation::kSilu;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  // torch_dtype / dtype; fp32 when config.json does not say. Exports keep
  // dense tensors in the checkpoint's own storage dtype instead.
  at::ScalarType dtype = at::kFloat;
  std::string json;  // the file as read, for exports that rewrite it

  int64_t query_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
};

// The text of DIR/config.json, of `max_bytes` at most. Throws what ReadFile does; for
// the folder of an artifact, whose outputs lie in folders of their own, a UserError
// INVALID_CHECKPOINT that names those.
std::string ReadConfigText(const std::string& dir, uint64_t max_bytes);

// Reads and checks config.json. `architecture` is set to its row. Throws
// EngineError: INVALID_CHECKPOINT (not JSON, a number absent or out of bounds),
// UNSUPPORTED_ARCHITECTURE (unknown model_type, a feature the engine lacks).
ModelConfig ParseModelConfig(std::string_view json, const Architecture** architecture);

// The most tokens a sequence of the model may have; the largest number where none is set.
int64_t LongestSequence(const Architecture& architecture, const ModelConfig& config);

// Refuses sequences the model cannot take: longer than a sliding window, or
// than the table of learned positions. UserError INVALID_SPEC.
void CheckSequenceLength(const Architecture& architecture, const ModelConfig& config,
                         int64_t tokens);

// Name as config.json has it: "silu", "relu", "gelu", "gelu_pytorch_tanh".
std::string_view ActivationName(Activation activation);

}  // namespace quantry::engine
