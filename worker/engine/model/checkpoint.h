#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "worker/engine/base/on_bytes.h"
#include "worker/engine/model/architecture.h"
#include "worker/engine/model/config.h"
#include "worker/engine/model/safetensors.h"

namespace quantry::engine {

// A Hugging Face checkpoint folder: config.json and one model.safetensors or
// several shards with model.safetensors.index.json. Opening maps the shards,
// reads headers (and a tied head that is stored), and checks that exactly the
// tensors the architecture asks for are there with the shapes config.json
// implies. Immutable and thread-safe afterwards; must outlive the Blocks loaded
// from it, which point to its config.
class Checkpoint {
 public:
  // Throws UserError: INVALID_CHECKPOINT, UNSUPPORTED_ARCHITECTURE,
  // CHECKPOINT_FORMAT_REFUSED (pickle only).
  static std::shared_ptr<const Checkpoint> Open(const std::string& dir);

  // A folder whose STEM.safetensors hold the linears `modules` ("model.layers.0
  // .mlp.up_proj") in another form: P.weight is absent, and any other P.NAME
  // is left to whoever knows the form. Everything else is checked as above;
  // quantization_config is left out of config(). Throws like Open.
  static std::shared_ptr<const Checkpoint> OpenPacked(const std::string& dir,
                                                      const std::string& stem,
                                                      std::set<std::string> modules);

  const std::string& dir() const { return dir_; }
  const ModelConfig& config() const { return config_; }
  const Architecture& architecture() const { return *architecture_; }

  // Whole tensor names.
  const std::string& EmbeddingName() const { return embedding_name_; }
  std::string HeadName() const;               // the embedding's name when tied
  std::string FinalNormName() const;          // without ".weight"
  std::string BlockPrefix(int block) const;   // "model.layers.3."
  std::string PositionEmbeddingName() const;  // learned positions only

  // Every tensor the architecture uses, in the order of the forward pass; the
  // weights of packed modules left out.
  const std::vector<std::string>& names() const { return names_; }
  bool Has(const std::string& name) const { return tensors_.count(name) != 0; }
  bool IsPacked(const std::string& tensor) const;         // P.NAME of a packed module P
  const TensorInfo& Info(const std::string& name) const;  // throws INVALID_CHECKPOINT
  at::Tensor LoadFloat(const std::string& name) const;    // see SafetensorsFile
  // Of every tensor of names(): throws what LoadFloat would.
  void CheckFinite(const OnBytes& on_bytes = {}) const;
  at::Tensor View(const std::string& name) const;
  void Release(const std::string& name) const;

  // Most frequent storage dtype among the blocks' linears; what exports keep
  // dense tensors in.
  at::ScalarType storage_dtype() const { return storage_dtype_; }

  int64_t parameters() const;              // tied tensors once
  std::vector<std::string> files() const;  // shard paths, sorted

 private:
  struct Entry {
    std::shared_ptr<SafetensorsFile> file;
    const TensorInfo* info;
  };
  Checkpoint() = default;
  void Read(const std::string& config, const std::string& stem);
  const Entry& Find(const std::string& name) const;
  void MapTensors(const std::string& stem);
  void ChoosePrefix();
  void CheckTensors();
  void RefuseSurplus() const;

  std::string dir_;
  ModelConfig config_;
  const Architecture* architecture_ = nullptr;
  std::set<std::string> packed_;
  std::string prefix_;
  std::string embedding_name_;
  at::ScalarType storage_dtype_ = at::kFloat;
  std::vector<std::shared_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> tensors_;
  std::vector<std::string> names_;
};

}  // namespace quantry::engine
