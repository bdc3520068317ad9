#include "worker/engine/export/manifest_check.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

constexpr size_t kSchemaWithin = 4096;  // bytes of a manifest: its first field
constexpr uint64_t kMaxManifestBytes = uint64_t{64} << 20;

[[noreturn]] void Refuse(const std::string& path, const std::string& wanted,
                         const std::string& got) {
  throw UserError("INVALID_CHECKPOINT",
                  StrCat(path, " is not what its manifest lists: wanted ", wanted, ", got ", got,
                         "; fetch the artifact again (quantry pull)"),
                  {{"path", path}});
}

// A text of somebody's JSON object; "" where there is none of that name.
std::string TextOf(const nlohmann::json& object, const std::string& name) {
  const nlohmann::json value = object.value(name, nlohmann::json());
  return value.is_string() ? value.get<std::string>() : "";
}

void CheckFile(const std::string& path, const nlohmann::json& listed) {
  const std::string wanted = TextOf(listed, "sha256");
  if (wanted.empty()) return;
  if (!IsRegularFile(path)) Refuse(path, "sha256 " + wanted, "no file");
  const FileDigest found = Sha256OfFile(path);
  if (found.sha256 != wanted) Refuse(path, "sha256 " + wanted, found.sha256);
}

}  // namespace

void CheckAgainstManifest(const std::string& dir) {
  std::error_code failed;
  const std::filesystem::path folder = std::filesystem::canonical(dir, failed);
  const std::string manifest = folder.parent_path() / "manifest.json";
  if (failed || !IsRegularFile(manifest)) return;
  const nlohmann::json json = ParseJson(ReadFile(manifest, kMaxManifestBytes, "INVALID_CHECKPOINT"),
                                        manifest, "INVALID_CHECKPOINT");
  const std::string prefix = folder.filename().string() + "/";
  const nlohmann::json files = json.is_object() ? json.value("files", nlohmann::json()) : json;
  for (const nlohmann::json& listed : files) {
    const std::string path = listed.is_object() ? TextOf(listed, "path") : "";
    if (path.starts_with(prefix)) CheckFile(folder.parent_path() / path, listed);
  }
}

bool IsOfArtifact(const std::string& dir) {
  std::error_code failed;
  const std::filesystem::path folder = std::filesystem::canonical(dir, failed);
  if (failed) return false;
  std::string head(kSchemaWithin, '\0');
  std::ifstream manifest(folder.parent_path() / "manifest.json");
  manifest.read(head.data(), static_cast<std::streamsize>(head.size()));
  return head.find("\"quantry.manifest.") != std::string::npos;
}

}  // namespace quantry::engine
