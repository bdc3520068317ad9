#include "worker/engine/model/shards.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxIndexBytes = 64ull << 20;
constexpr size_t kMaxShards = 10'000;  // each one is a mapping

EngineError Invalid(const std::string& message, const std::string& file) {
  return UserError("INVALID_CHECKPOINT", message, {{"file", file}});
}

// The index is somebody else's JSON: no path in it may lead out of the folder.
void CheckShardName(const std::string& name, const std::string& index) {
  const bool plain = !name.empty() && name.size() <= 255 && name.front() != '.' &&
                     name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  if (!plain) {
    throw Invalid(StrCat(index, " names the shard '", Printable(name),
                         "'; a plain file name in the checkpoint's folder is wanted"),
                  name);
  }
  if (!name.ends_with(".safetensors")) {
    throw UserError("CHECKPOINT_FORMAT_REFUSED",
                    StrCat(index, " names '", Printable(name), "'; only .safetensors is read"),
                    {{"file", name}});
  }
}

// Shard file name -> the tensors the index places in it.
std::map<std::string, std::vector<std::string>> ReadIndex(const std::string& path,
                                                          const std::string& index) {
  const nlohmann::json root =
      ParseJson(ReadFile(path, kMaxIndexBytes, "INVALID_CHECKPOINT"), index, "INVALID_CHECKPOINT");
  const auto weights = root.is_object() ? root.find("weight_map") : root.end();
  if (weights == root.end() || !weights->is_object() || weights->empty()) {
    throw Invalid(StrCat(index, " has no weight_map from tensors to files"), index);
  }
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [tensor, file] : weights->items()) {
    if (!file.is_string()) {
      throw Invalid(StrCat(index, ": the file of '", Printable(tensor), "' is not text"), index);
    }
    CheckShardName(file.get_ref<const std::string&>(), index);
    shards[file.get<std::string>()].push_back(tensor);
  }
  if (shards.size() > kMaxShards) {
    throw Invalid(StrCat(index, " names ", shards.size(), " shards, at most ", kMaxShards), index);
  }
  return shards;
}

std::vector<std::shared_ptr<SafetensorsFile>> OpenIndexed(const std::string& dir,
                                                          const std::string& index) {
  const auto shards = ReadIndex((fs::path(dir) / index).string(), index);
  for (const auto& [name, tensors] : shards) {
    if (!IsRegularFile((fs::path(dir) / name).string())) {
      throw Invalid(
          StrCat("the checkpoint lacks the shard ", name, ", which ", index, " names for ",
                 tensors.size(), " tensors. Download the missing file and submit again"),
          name);
    }
  }
  std::vector<std::shared_ptr<SafetensorsFile>> files;
  for (const auto& [name, tensors] : shards) {
    files.push_back(SafetensorsFile::Open((fs::path(dir) / name).string()));
    for (const std::string& tensor : tensors) {
      if (files.back()->Find(tensor) != nullptr) continue;
      throw Invalid(StrCat(index, " places tensor '", Printable(tensor), "' in ", name,
                           ", which does not have it"),
                    name);
    }
  }
  return files;
}

[[noreturn]] void RefuseFolder(const std::string& dir, const std::string& single,
                               const std::string& index) {
  std::vector<std::string> pickles;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(dir, ignored)) {
    const std::string suffix = entry.path().extension().string();
    if (suffix == ".bin" || suffix == ".pt" || suffix == ".pth" || suffix == ".ckpt") {
      pickles.push_back(entry.path().filename().string());
    }
  }
  std::sort(pickles.begin(), pickles.end());
  if (pickles.empty()) {
    throw Invalid(StrCat("no weights: ", dir, " has neither ", single, " nor ", index), single);
  }
  throw UserError(
      "CHECKPOINT_FORMAT_REFUSED",
      StrCat("the checkpoint has its weights only as pickles (", Join(pickles),
             "), which can run code when they are loaded; safetensors is wanted. Convert it "
             "where you trust it: python -c \"from transformers import AutoModelForCausalLM as M; "
             "M.from_pretrained('DIR').save_pretrained('OUT', safe_serialization=True)\""),
      {{"files", Join(pickles)}});
}

}  // namespace

std::vector<std::shared_ptr<SafetensorsFile>> OpenShards(const std::string& dir,
                                                         const std::string& stem) {
  const std::string single = stem + ".safetensors";
  const std::string index = single + ".index.json";
  const fs::path root(dir);
  if (IsRegularFile((root / single).string())) {
    return {SafetensorsFile::Open((root / single).string())};
  }
  if (IsRegularFile((root / index).string())) return OpenIndexed(dir, index);
  RefuseFolder(dir, single, index);
}

}  // namespace quantry::engine
