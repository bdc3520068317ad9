#include "worker/engine/export/model_files.h"

#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "worker/engine/base/file.h"

namespace quantry::engine {
namespace {

// Larger than any tokenizer; what is above is no tokenizer.
constexpr uint64_t kMaxCopiedBytes = uint64_t{256} << 20;

constexpr std::array<std::string_view, 17> kCopied = {"tokenizer.json",
                                                      "tokenizer_config.json",
                                                      "tokenizer.model",
                                                      "special_tokens_map.json",
                                                      "vocab.json",
                                                      "vocab.txt",
                                                      "merges.txt",
                                                      "added_tokens.json",
                                                      "spiece.model",
                                                      "generation_config.json",
                                                      "chat_template.json",
                                                      "chat_template.jinja",
                                                      "LICENSE",
                                                      "LICENSE.txt",
                                                      "LICENSE.md",
                                                      "NOTICE",
                                                      "USE_POLICY.md"};

// Those of kCopied that a folder has.
std::vector<std::string> FilesIn(const std::string& dir) {
  std::vector<std::string> found;
  for (const std::string_view name : kCopied) {
    if (IsRegularFile(dir + "/" + std::string(name))) found.emplace_back(name);
  }
  return found;
}

}  // namespace

std::vector<std::string> CopiedNames() { return {kCopied.begin(), kCopied.end()}; }

std::string WriteConfig(const Checkpoint& checkpoint, const Layout& layout, const std::string& dir,
                        std::vector<std::string>& warnings) {
  auto config = nlohmann::ordered_json::parse(checkpoint.config().json);
  if (config.erase("auto_map") > 0) {
    warnings.push_back(
        "config.json: auto_map was dropped, because Python files are never copied; readers use "
        "their own code for model_type " +
        checkpoint.config().model_type);
  }
  layout.Describe(config);
  WriteFileAtomically(dir + "/config.json", config.dump(2) + "\n");
  return "config.json";
}

std::vector<std::string> CopyModelFiles(const std::string& from, const std::string& dir) {
  std::vector<std::string> copied = FilesIn(from);
  for (const std::string& name : copied) {
    WriteFileAtomically(dir + "/" + name,
                        ReadFile(from + "/" + name, kMaxCopiedBytes, "INVALID_CHECKPOINT"));
  }
  return copied;
}

void CheckModelFiles(const std::string& from) {
  for (const std::string& name : FilesIn(from)) {
    CheckReadable(from + "/" + name, kMaxCopiedBytes, "INVALID_CHECKPOINT");
  }
}

}  // namespace quantry::engine
