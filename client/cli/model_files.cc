#include "client/cli/model_files.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

#include "client/cli/errors.h"
#include "client/cli/text.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kIndex = "model.safetensors.index.json";
constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kSafetensors = ".safetensors";
// An index of 1e6 tensors is 100 MB; more is not an index.
constexpr int64_t kMaxIndexBytes = 256LL << 20;

constexpr std::array<std::string_view, 12> kSmallFiles = {"config.json",
                                                          "tokenizer.json",
                                                          "tokenizer.model",
                                                          "tokenizer_config.json",
                                                          "vocab.json",
                                                          "vocab.txt",
                                                          "merges.txt",
                                                          "added_tokens.json",
                                                          "generation_config.json",
                                                          "special_tokens_map.json",
                                                          "chat_template.jinja",
                                                          "chat_template.json"};
constexpr std::array<std::string_view, 5> kPickles = {".bin", ".pt", ".pth", ".ckpt", ".pkl"};

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() > end.size() && text.substr(text.size() - end.size()) == end;
}

bool IsPickle(std::string_view name) {
  return std::any_of(kPickles.begin(), kPickles.end(),
                     [&](std::string_view end) { return EndsWith(name, end); });
}

absl::Status BadCheckpoint(const std::string& message) {
  return MakeError(Reason::kInvalidCheckpoint, message);
}

absl::Status PickleRefused(const std::string& folder, const std::string& pickle) {
  return WithNext(
      MakeError(Reason::kCheckpointFormatRefused,
                Cat("\"", folder, "\" holds its weights as ", pickle,
                    ", a pickle, which can run code when it is read: wanted *.safetensors"),
                {{"path", folder}, {"file", pickle}}),
      Cat("convert it where transformers is installed: python3 -c \"from transformers import "
          "AutoModelForCausalLM as M; M.from_pretrained('",
          folder, "').save_pretrained('", folder, "-safetensors', safe_serialization=True)\""));
}

// Everything in the folder itself that is a regular file after links.
absl::StatusOr<std::vector<LocalFile>> ListFolder(const std::string& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    return WithNext(
        absl::InvalidArgumentError(
            Cat("MODEL_DIR: wanted a folder with config.json and "
                "*.safetensors, got \"",
                folder, "\"",
                fs::exists(folder, error) ? ", which is no folder" : ", which does not exist")),
        "for a folder on the server's machine use --model-path");
  }
  std::vector<LocalFile> files;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (!it->is_regular_file(ignored)) continue;
    const auto size = static_cast<int64_t>(it->file_size(ignored));
    files.push_back({it->path().filename().string(), it->path().string(), size});
  }
  if (error) {
    return absl::InvalidArgumentError(Cat("cannot list \"", folder, "\": ", error.message()));
  }
  std::sort(files.begin(), files.end(),
            [](const LocalFile& a, const LocalFile& b) { return a.name < b.name; });
  return files;
}

const LocalFile* Find(const std::vector<LocalFile>& files, std::string_view name) {
  const auto found = std::find_if(files.begin(), files.end(),
                                  [&](const LocalFile& file) { return file.name == name; });
  return found == files.end() ? nullptr : &*found;
}

// The shard names of an index.
absl::StatusOr<std::set<std::string>> ShardsOf(const LocalFile& index) {
  if (index.size_bytes > kMaxIndexBytes) {
    return BadCheckpoint(
        Cat(index.path, ": ", index.size_bytes, " bytes are too many for an index"));
  }
  std::ifstream in(index.path, std::ios::binary);
  const auto json = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    return BadCheckpoint(Cat(index.path, ": wanted JSON with an object \"weight_map\""));
  }
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : json["weight_map"].items()) {
    if (!shard.is_string()) {
      return BadCheckpoint(Cat(index.path, ": wanted a file name for tensor \"", tensor, "\""));
    }
    shards.insert(shard.get<std::string>());
  }
  return shards;
}

absl::Status CheckShards(const LocalFile& index, const std::set<std::string>& shards,
                         const std::vector<LocalFile>& files) {
  for (const std::string& shard : shards) {
    if (shard.find('/') != std::string::npos || !EndsWith(shard, kSafetensors)) {
      return BadCheckpoint(Cat(index.path, " names the shard \"", shard,
                               "\": wanted a *.safetensors file in the same folder"));
    }
    if (Find(files, shard) == nullptr) {
      return BadCheckpoint(Cat(index.path, " names the shard \"", shard, "\", which is not there"));
    }
  }
  return absl::OkStatus();
}

// Which safetensors belong to the model: the index's shards and the single
// file; every one only when there is neither.
absl::StatusOr<std::set<std::string>> WeightFiles(const std::string& folder,
                                                  const std::vector<LocalFile>& files) {
  std::set<std::string> weights;
  if (const LocalFile* index = Find(files, kIndex); index != nullptr) {
    absl::StatusOr<std::set<std::string>> shards = ShardsOf(*index);
    if (!shards.ok()) return shards.status();
    if (absl::Status status = CheckShards(*index, *shards, files); !status.ok()) return status;
    weights = *std::move(shards);
  }
  if (Find(files, kSingle) != nullptr) weights.insert(std::string(kSingle));
  if (!weights.empty()) return weights;
  std::string pickle;
  for (const LocalFile& file : files) {
    if (EndsWith(file.name, kSafetensors)) weights.insert(file.name);
    if (pickle.empty() && IsPickle(file.name)) pickle = file.name;
  }
  if (!weights.empty()) return weights;
  if (!pickle.empty()) return PickleRefused(folder, pickle);
  return BadCheckpoint(Cat("\"", folder,
                           "\" has no weights: wanted model.safetensors, or shards "
                           "with ",
                           kIndex));
}

}  // namespace

bool IsModelFile(std::string_view name) {
  return std::find(kSmallFiles.begin(), kSmallFiles.end(), name) != kSmallFiles.end() ||
         EndsWith(name, kSafetensors) || EndsWith(name, ".safetensors.index.json");
}

absl::StatusOr<std::vector<LocalFile>> FindModelFiles(const std::string& folder) {
  absl::StatusOr<std::vector<LocalFile>> files = ListFolder(folder);
  if (!files.ok()) return files.status();
  if (Find(*files, "config.json") == nullptr) {
    return BadCheckpoint(Cat("\"", folder,
                             "\" has no config.json: wanted a checkpoint in Hugging "
                             "Face layout (config.json, *.safetensors, tokenizer.json)"));
  }
  const absl::StatusOr<std::set<std::string>> weights = WeightFiles(folder, *files);
  if (!weights.ok()) return weights.status();
  std::vector<LocalFile> chosen;
  for (LocalFile& file : *files) {
    const bool wanted =
        EndsWith(file.name, kSafetensors) ? weights->count(file.name) > 0 : IsModelFile(file.name);
    if (wanted) chosen.push_back(std::move(file));
  }
  return chosen;
}

absl::StatusOr<LocalFile> FindTextFile(std::string_view flag, const std::string& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(
        Cat(flag, ": wanted a readable file, got \"", path, "\"",
            fs::exists(path, error) ? ", which is no file" : ", which does not exist"));
  }
  const auto size = static_cast<int64_t>(fs::file_size(path, error));
  if (error) return absl::InvalidArgumentError(Cat(flag, ": ", path, ": ", error.message()));
  if (size == 0) {
    return MakeError(
        Reason::kInvalidCalibration,
        Cat(flag, ": \"", path, "\" is empty: wanted text to take windows of tokens from"));
  }
  return LocalFile{fs::path(path).filename().string(), path, size};
}

}  // namespace quantry::cli
