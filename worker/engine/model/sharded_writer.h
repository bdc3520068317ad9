#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "worker/engine/model/safetensors.h"

namespace quantry::engine {

// Largest data of one shard (formats.md 3.1); a single larger tensor gets a
// shard of its own.
constexpr uint64_t kMaxShardBytes = 5'000'000'000;

// Writes tensors in a planned order into shards, one open at a time:
// STEM.safetensors, or STEM-00001-of-00003.safetensors .. and
// STEM.safetensors.index.json. Shards appear under their names when complete.
class ShardedWriter {
 public:
  // `metadata` gives the safetensors metadata of a shard that holds `specs`.
  using Metadata =
      std::function<std::map<std::string, std::string>(const std::vector<TensorSpec>& specs)>;

  // What transformers wants of every file, and no more.
  static std::map<std::string, std::string> PlainMetadata(const std::vector<TensorSpec>&) {
    return {{"format", "pt"}};
  }

  ShardedWriter(const std::string& dir, const std::string& stem, std::vector<TensorSpec> specs,
                const Metadata& metadata = PlainMetadata,
                uint64_t max_shard_bytes = kMaxShardBytes);

  // The next tensor of the plan.
  void Append(const std::string& name, const at::Tensor& tensor);
  // Closes the last shard, writes the index. Returns bytes of all shards.
  uint64_t Finish();

  // File names inside dir: shards, and the index when there is one.
  const std::vector<std::string>& files() const { return files_; }

 private:
  void OpenShard();
  void WriteIndex() const;

  std::string dir_;
  std::string stem_;
  std::vector<std::vector<TensorSpec>> shards_;
  std::vector<std::string> files_;
  std::vector<std::map<std::string, std::string>> metadata_;
  size_t shard_ = 0;    // the open one
  size_t written_ = 0;  // tensors of it
  uint64_t bytes_ = 0;
  std::unique_ptr<SafetensorsWriter> writer_;
};

}  // namespace quantry::engine
