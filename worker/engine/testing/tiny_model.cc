#include "worker/engine/testing/tiny_model.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/model/architecture.h"
#include "worker/engine/model/config.h"
#include "worker/engine/model/safetensors.h"

namespace quantry::engine::test {
namespace {

using nlohmann::json;

json BaseConfig(const std::string& architecture) {
  if (architecture == "opt") {
    return {{"model_type", "opt"},
            {"hidden_size", 32},
            {"ffn_dim", 64},
            {"vocab_size", 50},
            {"num_hidden_layers", 2},
            {"num_attention_heads", 4},
            {"word_embed_proj_dim", 32},
            {"max_position_embeddings", 64}};
  }
  json config = {{"model_type", architecture}, {"hidden_size", 32},
                 {"intermediate_size", 64},    {"vocab_size", 50},
                 {"num_hidden_layers", 2},     {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},   {"head_dim", 8},
                 {"rms_norm_eps", 1e-5},       {"max_position_embeddings", 64}};
  return config;
}

// Sums of uniform numbers: near enough to normal, the same everywhere.
at::Tensor RandomTensor(Random& random, const std::vector<int64_t>& shape, double scale,
                        double mean) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  auto* data = tensor.data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    double sum = -6.0;
    for (int k = 0; k < 12; ++k) sum += static_cast<double>(random.Next() >> 11) * 0x1p-53;
    data[i] = static_cast<float>(mean + scale * sum);
  }
  return tensor;
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

void WriteTensors(const std::string& path, const std::map<std::string, at::Tensor>& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
  }
  SafetensorsWriter writer(path, specs);
  for (const auto& [name, tensor] : tensors) writer.Append(name, tensor);
  writer.Finish();
}

}  // namespace

TinyModel MakeTinyModel(const std::string& architecture, const json& changes, uint64_t seed) {
  TinyModel model;
  model.config = BaseConfig(architecture);
  model.config.update(changes);
  const Architecture* row = nullptr;
  const ModelConfig config = ParseModelConfig(model.config.dump(), &row);
  Random random(seed);
  const auto matrix = [&](const std::string& name, int64_t out, int64_t in, double scale) {
    model.tensors[name] = RandomTensor(random, {out, in}, scale, 0.0);
  };
  const auto norm = [&](const std::string& name, int64_t size) {
    model.tensors[name + ".weight"] = RandomTensor(random, {size}, 0.2, 1.0);
    if (row->norm_kind == NormKind::kLayer) {
      model.tensors[name + ".bias"] = RandomTensor(random, {size}, 0.2, 0.0);
    }
  };
  const std::string& prefix = row->prefixes.front();
  matrix(prefix + row->embedding, config.vocab_size, config.hidden_size, 1.0);
  if (row->positions == PositionKind::kLearned) {
    matrix(prefix + row->position_embedding, config.max_positions + row->position_offset,
           config.hidden_size, 0.5);
  }
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string block = StrCat(prefix, row->block_prefix, i, ".");
    for (const NormSpec& spec : row->norms) norm(block + spec.name, SizeOf(config, spec.role));
    for (const LinearSpec& spec : row->linears) {
      const LinearShape shape = ShapeOf(config, spec.role);
      matrix(block + spec.name + ".weight", shape.out, shape.in,
             1.0 / std::sqrt(static_cast<double>(shape.in)));
      if (HasBias(config, spec)) {
        model.tensors[block + spec.name + ".bias"] = RandomTensor(random, {shape.out}, 0.1, 0.0);
      }
    }
  }
  norm(prefix + row->final_norm, config.hidden_size);
  if (!config.tie_word_embeddings) {
    matrix(row->head, config.vocab_size, config.hidden_size, 0.3);
  }
  return model;
}

void TinyModel::Write(const std::string& dir) const {
  std::filesystem::create_directories(dir);
  WriteFile(dir + "/config.json", config.dump(1));
  WriteTensors(dir + "/model.safetensors", tensors);
}

void TinyModel::WriteSharded(const std::string& dir) const {
  std::filesystem::create_directories(dir);
  WriteFile(dir + "/config.json", config.dump(1));
  std::map<std::string, at::Tensor> halves[2];
  json index = {{"metadata", json::object()}, {"weight_map", json::object()}};
  size_t i = 0;
  for (const auto& [name, tensor] : tensors) {
    const int half = i++ < tensors.size() / 2 ? 0 : 1;
    halves[half][name] = tensor;
    index["weight_map"][name] = StrCat("model-0000", half + 1, "-of-00002.safetensors");
  }
  for (const int half : {0, 1}) {
    WriteTensors(StrCat(dir, "/model-0000", half + 1, "-of-00002.safetensors"), halves[half]);
  }
  WriteFile(dir + "/model.safetensors.index.json", index.dump(1));
}

}  // namespace quantry::engine::test
