#pragma once

#include <ATen/ATen.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "worker/engine/model/safetensors.h"

namespace quantry::engine {

// A written folder of STEM*.safetensors, opened again through its index.
// Tensors are read one by one; pages are dropped from memory after use.
class OutputReader {
 public:
  // Throws UserError INVALID_CHECKPOINT when a file is absent or malformed.
  OutputReader(const std::string& dir, const std::string& stem);

  // A copy. Throws EngineError "OUTPUT_VERIFICATION_FAILED" when there is none
  // of that name.
  at::Tensor Read(const std::string& name) const;
  bool Has(const std::string& name) const { return tensors_.count(name) != 0; }
  size_t tensors() const { return tensors_.size(); }
  std::vector<std::string> names() const;
  // safetensors metadata of all shards.
  std::vector<std::map<std::string, std::string>> metadata() const;

 private:
  struct Entry {
    std::shared_ptr<SafetensorsFile> file;
    const TensorInfo* info;
  };
  void OpenFile(const std::string& path);

  std::string dir_;
  std::vector<std::shared_ptr<SafetensorsFile>> files_;
  std::map<std::string, Entry> tensors_;
};

}  // namespace quantry::engine
