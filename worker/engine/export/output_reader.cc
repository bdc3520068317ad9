#include "worker/engine/export/output_reader.h"

#include <nlohmann/json.hpp>
#include <set>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;

// Shards an index names, without folders in them.
std::set<std::string> ShardsOf(const std::string& index_path) {
  const nlohmann::json index = ParseJson(ReadFile(index_path, kMaxIndexBytes, "INVALID_CHECKPOINT"),
                                         index_path, "INVALID_CHECKPOINT");
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object()) {
    throw UserError("INVALID_CHECKPOINT", index_path + ": no weight_map from tensors to files");
  }
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : map->items()) {
    const std::string name = shard.is_string() ? shard.get<std::string>() : "";
    if (name.empty() || name.find('/') != std::string::npos) {
      throw UserError("INVALID_CHECKPOINT", StrCat(index_path, ": the shard of ", Printable(tensor),
                                                   " must be a file name without folders"));
    }
    shards.insert(name);
  }
  if (shards.empty()) throw UserError("INVALID_CHECKPOINT", index_path + ": names no shards");
  return shards;
}

}  // namespace

OutputReader::OutputReader(const std::string& dir, const std::string& stem) : dir_(dir) {
  const std::string single = dir + "/" + stem + ".safetensors";
  const std::string index = single + ".index.json";
  if (!IsRegularFile(index)) {
    OpenFile(single);
    return;
  }
  if (IsRegularFile(single)) {
    throw UserError("INVALID_CHECKPOINT",
                    StrCat(dir, " holds the same tensors twice, in ", stem,
                           ".safetensors and in the shards of ", stem,
                           ".safetensors.index.json: remove the one that is left over"),
                    {{"path", single}});
  }
  for (const std::string& shard : ShardsOf(index)) OpenFile(dir + "/" + shard);
}

void OutputReader::OpenFile(const std::string& path) {
  files_.push_back(SafetensorsFile::Open(path));
  for (const TensorInfo& info : files_.back()->tensors()) {
    if (!tensors_.try_emplace(info.name, Entry{files_.back(), &info}).second) {
      throw UserError("INVALID_CHECKPOINT", path + ": tensor " + info.name + " is in two shards");
    }
  }
}

at::Tensor OutputReader::Read(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw EngineError(FailureClass::kEnvironment, "OUTPUT_VERIFICATION_FAILED",
                      "tensor " + name + " is not in " + dir_,
                      {{"tensor", name}, {"output", dir_}});
  }
  const Entry& entry = found->second;
  at::Tensor value = entry.file->View(*entry.info).clone();
  entry.file->Release(*entry.info);
  return value;
}

std::vector<std::string> OutputReader::names() const {
  std::vector<std::string> names;
  for (const auto& [name, unused] : tensors_) names.push_back(name);
  return names;
}

std::vector<std::map<std::string, std::string>> OutputReader::metadata() const {
  std::vector<std::map<std::string, std::string>> all;
  for (const auto& file : files_) all.push_back(file->metadata());
  return all;
}

}  // namespace quantry::engine
