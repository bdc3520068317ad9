#include "worker/engine/model/config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <system_error>
#include <vector>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/model/architecture.h"
#include "worker/engine/model/config_reader.h"

namespace quantry::engine {
namespace {

using nlohmann::json;

// Bounds on config.json. Larger than any published model by a factor of ten or
// more; products of three of them still fit int64.
constexpr struct {
  int64_t hidden_size = int64_t{1} << 20;
  int64_t layers = 4096;
  int64_t heads = 65536;
  int64_t head_dim = 65536;
  int64_t vocab_size = int64_t{1} << 24;
  int64_t positions = int64_t{1} << 31;
} kConfigLimits;

struct ActivationRow {
  std::string_view name;
  Activation activation;
};

// The first name of each activation is the one we write.
constexpr ActivationRow kActivations[] = {
    {"silu", Activation::kSilu},
    {"swish", Activation::kSilu},
    {"relu", Activation::kRelu},
    {"gelu", Activation::kGelu},
    {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"gelu_new", Activation::kGeluTanh},
};

Activation ActivationByName(const std::string& name) {
  std::vector<std::string_view> known;
  for (const ActivationRow& row : kActivations) {
    if (row.name == name) return row.activation;
    known.push_back(row.name);
  }
  throw UserError("UNSUPPORTED_ARCHITECTURE",
                  StrCat("config.json: activation '", Printable(name), "' is not one of ",
                         Join(known, known.size())),
                  {{"activation", name}});
}

EngineError Unsupported(const std::string& message) {
  return UserError("UNSUPPORTED_ARCHITECTURE", "config.json: " + message);
}

// Folders of models in that of an artifact, in order; none in another folder, or
// where it cannot be listed.
std::vector<std::string> OutputsOfArtifact(const std::filesystem::path& dir) {
  std::vector<std::string> outputs;
  if (!IsRegularFile((dir / "manifest.json").string())) return outputs;
  std::error_code error;
  std::filesystem::directory_iterator entry(dir, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (!IsRegularFile((entry->path() / "config.json").string())) continue;
    outputs.push_back((dir / Printable(entry->path().filename().string())).string());
  }
  std::sort(outputs.begin(), outputs.end());
  return outputs;
}

// Returns where `dir` is none.
void RefuseArtifactFolder(const std::string& dir) {
  const std::string outputs = Join(OutputsOfArtifact(dir));
  if (outputs.empty()) return;
  throw UserError("INVALID_CHECKPOINT",
                  StrCat("wanted the folder of a model, got that of an artifact, ", dir,
                         "; give one of its outputs: ", outputs),
                  {{"path", dir}, {"outputs", outputs}});
}

at::ScalarType ReadDtype(const ConfigReader& reader) {
  const std::string fallback = reader.Text("torch_dtype", "float32");
  const std::string name = reader.Text("dtype", fallback);
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  return at::kFloat;
}

RopeScaling ReadRopeScaling(const ConfigReader& rope, int64_t max_positions) {
  RopeScaling scaling;
  const std::string type = rope.Text("rope_type", rope.Text("type", "default"));
  if (type == "default" || type == "none") return scaling;
  if (type != "linear" && type != "llama3") {
    throw Unsupported(StrCat("rope scaling '", Printable(type),
                             "' is not supported; default, linear and llama3 are"));
  }
  scaling.factor = rope.Number("factor", 1.0, 1e6);
  scaling.kind = RopeScaling::Kind::kLinear;
  if (type == "linear") return scaling;
  scaling.kind = RopeScaling::Kind::kLlama3;
  scaling.low_freq_factor = rope.Number("low_freq_factor", 1e-6, 1e6);
  scaling.high_freq_factor = rope.Number("high_freq_factor", 1e-6, 1e6);
  scaling.original_max_positions =
      rope.Integer("original_max_position_embeddings", 1, kConfigLimits.positions, max_positions);
  if (scaling.high_freq_factor <= scaling.low_freq_factor) {
    throw UserError("INVALID_CHECKPOINT",
                    StrCat("config.json: high_freq_factor ", scaling.high_freq_factor,
                           " must be above low_freq_factor ", scaling.low_freq_factor));
  }
  return scaling;
}

// Old spelling: rope_theta beside rope_scaling. New one: rope_parameters.
void ReadRope(const ConfigReader& reader, const ConfigSchema& schema, ModelConfig* config) {
  const double theta = reader.Number("rope_theta", 1.0, 1e15, schema.default_rope_theta);
  const bool is_new = reader.Has("rope_parameters");
  const ConfigReader rope = reader.Object(is_new ? "rope_parameters" : "rope_scaling");
  for (const ConfigReader* from : {&reader, &rope}) {
    if (from->Number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0) {
      throw Unsupported("partial_rotary_factor below 1 is not supported");
    }
  }
  if (rope.Has("full_attention") || rope.Has("sliding_attention")) {
    throw Unsupported("rope_parameters by layer type are not supported");
  }
  config->rope_theta = rope.Number("rope_theta", 1.0, 1e15, theta);
  config->rope_scaling = ReadRopeScaling(rope, config->max_positions);
}

int64_t ReadSlidingWindow(const ConfigReader& reader, const ConfigSchema& schema) {
  const int64_t fallback = reader.HasKey("sliding_window") ? 0 : schema.default_sliding_window;
  const int64_t window = reader.Integer("sliding_window", 0, kConfigLimits.positions, fallback);
  if (schema.sliding_window_needs_flag && !reader.Flag("use_sliding_window", false)) return 0;
  if (!reader.Has("layer_types")) return window;
  bool sliding = false;
  for (const std::string& type : reader.Texts("layer_types")) {
    if (type != "full_attention" && type != "sliding_attention") {
      throw Unsupported(StrCat("layer type '", Printable(type), "' is not supported"));
    }
    sliding = sliding || type == "sliding_attention";
  }
  return sliding ? window : 0;
}

void CheckFlags(const ConfigReader& reader, const Architecture& row, int64_t hidden_size) {
  for (const RequiredFlag& flag : row.schema.required_flags) {
    if (reader.Flag(flag.key, flag.wanted) == flag.wanted) continue;
    throw Unsupported(StrCat(flag.key, " must be ", flag.wanted ? "true" : "false", " for ",
                             row.name, "; otherwise it has ", flag.reason,
                             ", which is not supported"));
  }
  for (const std::string& key : row.schema.equal_to_hidden_size) {
    const int64_t value = reader.Integer(key, 1, kConfigLimits.hidden_size, hidden_size);
    if (value == hidden_size) continue;
    throw Unsupported(StrCat(key, " is ", value, ", hidden_size is ", hidden_size, ": ", row.name,
                             " models with projections around the blocks are not supported"));
  }
  if (reader.Has("quantization_config")) {
    throw UserError(
        "INVALID_CHECKPOINT",
        "config.json has a quantization_config: this checkpoint is already quantized. "
        "Start from the original one in fp32, fp16 or bf16; to run or measure this one, "
        "make it dense with quantry-engine unpack");
  }
}

void ReadAttention(const ConfigReader& reader, const ConfigSchema& schema, ModelConfig* config) {
  config->num_heads = reader.Integer("num_attention_heads", 1, kConfigLimits.heads);
  const int64_t kv_default =
      schema.default_kv_heads > 0 ? schema.default_kv_heads : config->num_heads;
  config->num_kv_heads = reader.Integer("num_key_value_heads", 1, kConfigLimits.heads, kv_default);
  if (config->num_heads % config->num_kv_heads != 0) {
    throw UserError("INVALID_CHECKPOINT",
                    StrCat("config.json: num_key_value_heads ", config->num_kv_heads,
                           " does not divide num_attention_heads ", config->num_heads));
  }
  const int64_t share = config->hidden_size / config->num_heads;
  const int64_t dim_default = schema.default_head_dim > 0 ? schema.default_head_dim : share;
  const bool given = reader.Has("head_dim") || schema.default_head_dim > 0;
  if (!given && (share == 0 || config->hidden_size % config->num_heads != 0)) {
    throw UserError("INVALID_CHECKPOINT", StrCat("config.json: num_attention_heads ",
                                                 config->num_heads, " does not divide hidden_size ",
                                                 config->hidden_size, " and there is no head_dim"));
  }
  config->head_dim = reader.Integer("head_dim", 1, kConfigLimits.head_dim, dim_default);
}

ModelConfig ReadConfig(const ConfigReader& reader, const Architecture& row) {
  const ConfigSchema& schema = row.schema;
  ModelConfig config;
  config.hidden_size = reader.Integer("hidden_size", 1, kConfigLimits.hidden_size);
  config.intermediate_size =
      reader.Integer(schema.intermediate_size_key, 1, kConfigLimits.hidden_size);
  config.num_layers = reader.Integer("num_hidden_layers", 1, kConfigLimits.layers);
  config.vocab_size = reader.Integer("vocab_size", 1, kConfigLimits.vocab_size);
  config.max_positions =
      reader.Integer("max_position_embeddings", 1, kConfigLimits.positions, 2048);
  CheckFlags(reader, row, config.hidden_size);
  ReadAttention(reader, schema, &config);
  config.norm_eps = schema.norm_eps_key.empty()
                        ? schema.default_norm_eps
                        : reader.Number(schema.norm_eps_key, 0.0, 1.0, schema.default_norm_eps);
  config.activation =
      ActivationByName(reader.Text(schema.activation_key, schema.default_activation));
  config.attention_bias =
      schema.attention_bias_key.empty()
          ? schema.default_attention_bias
          : reader.Flag(schema.attention_bias_key, schema.default_attention_bias);
  config.mlp_bias = schema.mlp_bias_key.empty()
                        ? schema.default_mlp_bias
                        : reader.Flag(schema.mlp_bias_key, schema.default_mlp_bias);
  config.tie_word_embeddings =
      reader.Flag("tie_word_embeddings", schema.default_tie_word_embeddings);
  config.dtype = ReadDtype(reader);
  if (row.positions == PositionKind::kLearned) return config;
  ReadRope(reader, schema, &config);
  if (config.head_dim % 2 != 0) {
    throw Unsupported(StrCat("head_dim ", config.head_dim, " is odd, rotary positions want pairs"));
  }
  config.sliding_window = ReadSlidingWindow(reader, schema);
  return config;
}

}  // namespace

std::string ReadConfigText(const std::string& dir, uint64_t max_bytes) {
  const std::string path = (std::filesystem::path(dir) / "config.json").string();
  if (!IsRegularFile(path)) RefuseArtifactFolder(dir);
  return ReadFile(path, max_bytes, "INVALID_CHECKPOINT");
}

std::string_view ActivationName(Activation activation) {
  for (const ActivationRow& row : kActivations) {
    if (row.activation == activation) return row.name;
  }
  return {};
}

ModelConfig ParseModelConfig(std::string_view text, const Architecture** architecture) {
  const json root = ParseJson(text, "config.json", "INVALID_CHECKPOINT");
  const ConfigReader reader(root, "config.json");
  const std::string model_type = reader.Text("model_type", "");
  const Architecture* row = FindArchitecture(model_type);
  if (row == nullptr) {
    std::vector<std::string> known;
    for (const Architecture* candidate : Architectures()) {
      known.insert(known.end(), candidate->model_types.begin(), candidate->model_types.end());
    }
    throw UserError("UNSUPPORTED_ARCHITECTURE",
                    StrCat("config.json: model_type '", Printable(model_type),
                           "' is not supported; ", Join(known, known.size()), " are"),
                    {{"model_type", model_type}});
  }
  ModelConfig config = ReadConfig(reader, *row);
  config.model_type = model_type;
  config.json = std::string(text);
  *architecture = row;
  return config;
}

int64_t LongestSequence(const Architecture& architecture, const ModelConfig& config) {
  if (config.sliding_window > 0) return config.sliding_window;
  return architecture.positions == PositionKind::kLearned ? config.max_positions
                                                          : std::numeric_limits<int64_t>::max();
}

void CheckSequenceLength(const Architecture& architecture, const ModelConfig& config,
                         int64_t tokens) {
  const int64_t limit = LongestSequence(architecture, config);
  if (tokens <= limit) return;
  const std::string why = config.sliding_window > 0
                              ? "its attention slides over a window (sliding_window)"
                              : "it has learned positions (max_position_embeddings)";
  throw UserError(
      "INVALID_SPEC",
      StrCat("sequences of ", tokens, " tokens are asked for, this model takes at most ", limit,
             ": ", why, ". Choose a shorter sequence length"),
      {{"wanted", std::to_string(tokens)}, {"limit", std::to_string(limit)}});
}

}  // namespace quantry::engine
