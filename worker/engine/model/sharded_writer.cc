#include "worker/engine/model/sharded_writer.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"

namespace quantry::engine {
namespace {

std::vector<std::vector<TensorSpec>> Split(std::vector<TensorSpec> specs, uint64_t limit) {
  std::vector<std::vector<TensorSpec>> shards(1);
  uint64_t bytes = 0;
  for (TensorSpec& spec : specs) {
    const uint64_t size = BytesOf(spec);
    if (!shards.back().empty() && bytes + size > limit) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += size;
    shards.back().push_back(std::move(spec));
  }
  return shards;
}

std::string ShardName(const std::string& stem, size_t index, size_t count) {
  if (count == 1) return stem + ".safetensors";
  char numbers[48];
  std::snprintf(numbers, sizeof(numbers), "-%05zu-of-%05zu.safetensors", index + 1, count);
  return stem + numbers;
}

}  // namespace

ShardedWriter::ShardedWriter(const std::string& dir, const std::string& stem,
                             std::vector<TensorSpec> specs, const Metadata& metadata,
                             uint64_t max_shard_bytes)
    : dir_(dir), stem_(stem), shards_(Split(std::move(specs), max_shard_bytes)) {
  for (size_t i = 0; i < shards_.size(); ++i) {
    files_.push_back(ShardName(stem_, i, shards_.size()));
    metadata_.push_back(metadata(shards_[i]));
  }
  OpenShard();
}

void ShardedWriter::OpenShard() {
  written_ = 0;
  writer_ = std::make_unique<SafetensorsWriter>(dir_ + "/" + files_[shard_], shards_[shard_],
                                                metadata_[shard_]);
}

void ShardedWriter::Append(const std::string& name, const at::Tensor& tensor) {
  if (written_ == shards_[shard_].size()) {
    if (shard_ + 1 == shards_.size()) {
      throw EngineError(FailureClass::kBug, "INTERNAL", "tensor " + name + " is not in the plan");
    }
    bytes_ += writer_->Finish();
    ++shard_;
    OpenShard();
  }
  writer_->Append(name, tensor);
  ++written_;
}

uint64_t ShardedWriter::Finish() {
  bytes_ += writer_->Finish();
  if (shard_ + 1 != shards_.size()) {
    throw EngineError(FailureClass::kBug, "INTERNAL", "shards of the plan were not written");
  }
  if (shards_.size() > 1) {
    WriteIndex();
    files_.push_back(stem_ + ".safetensors.index.json");
  }
  return bytes_;
}

void ShardedWriter::WriteIndex() const {
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  uint64_t total = 0;
  for (size_t i = 0; i < shards_.size(); ++i) {
    for (const TensorSpec& spec : shards_[i]) {
      weight_map[spec.name] = files_[i];
      total += BytesOf(spec);
    }
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}},
                                        {"weight_map", weight_map}};
  WriteFileAtomically(dir_ + "/" + stem_ + ".safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace quantry::engine
