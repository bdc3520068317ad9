#pragma once

#include <ATen/ATen.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace quantry::engine::test {

// A checkpoint of a few thousand random weights, in memory, to be changed by a
// test and written. The weights depend on `seed` alone.
struct TinyModel {
  nlohmann::json config;
  std::map<std::string, at::Tensor> tensors;

  // config.json and model.safetensors.
  void Write(const std::string& dir) const;
  // config.json, two shards and their index.
  void WriteSharded(const std::string& dir) const;
};

// `architecture` is a row's name: "llama", "mistral", "qwen2", "qwen3", "opt".
// `changes` are merged into config.json before the tensors are made.
TinyModel MakeTinyModel(const std::string& architecture,
                        const nlohmann::json& changes = nlohmann::json::object(),
                        uint64_t seed = 1);

}  // namespace quantry::engine::test
