#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace quantry::cli {

// A local file that takes part in an upload.
struct LocalFile {
  std::string name;  // in the model folder: "config.json"
  std::string path;  // where to open it
  int64_t size_bytes = 0;
};

// True for the names a job may need: config.json, *.safetensors, *.index.json,
// tokenizer and generation files, chat templates. Code, pickles and everything
// else stay at home.
bool IsModelFile(std::string_view name);

// What to upload of a checkpoint folder in Hugging Face layout, sorted by name.
// With a shard index, only the shards it names. Links are followed: caches of
// downloaded models are made of them.
// INVALID_ARGUMENT INVALID_CHECKPOINT when config.json, the weights or a shard
// are missing or a name leaves the folder; CHECKPOINT_FORMAT_REFUSED when
// weights exist as pickles only.
absl::StatusOr<std::vector<LocalFile>> FindModelFiles(const std::string& folder);

// One readable, regular, non-empty file: a calibration or evaluation text.
// `flag` is named in the error.
absl::StatusOr<LocalFile> FindTextFile(std::string_view flag, const std::string& path);

}  // namespace quantry::cli
