#include "worker/engine/pipeline/output_folders.h"

#include <filesystem>
#include <vector>

#include "worker/engine/base/error.h"

namespace quantry::engine {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void Fail(const std::string& dir, const std::string& why) {
  throw EngineError(FailureClass::kEnvironment, "WRITE_FAILED",
                    "preparing output folder " + dir + ": " + why, {{"path", dir}});
}

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool IsWeightFile(const std::string& name) {
  return name.rfind("model", 0) == 0 &&
         (EndsWith(name, ".safetensors") || EndsWith(name, ".safetensors.index.json") ||
          EndsWith(name, ".partial"));
}

}  // namespace

void CreateOutputFolder(const std::string& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  if (!error) fs::remove(dir + "/manifest.json", error);
  if (error) Fail(dir, error.message());
}

void PrepareFormatFolder(const std::string& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) Fail(dir, error.message());
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(dir, error)) {
    if (IsWeightFile(entry.path().filename().string())) stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) fs::remove(path, error);
  if (error) Fail(dir, error.message());
}

}  // namespace quantry::engine
