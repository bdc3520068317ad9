#include "server/rpc/committed_manifest.h"

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/errors.h"
#include "google/protobuf/util/json_util.h"

namespace quantry::server {

absl::Status NotAsCommitted(const std::string& path, const std::string& wanted,
                            const std::string& got) {
  return MakeError(Reason::kArtifactCorrupt,
                   absl::StrCat(path, ": wanted ", wanted, ", got ", got,
                                "; the stored file changed after it was committed"),
                   {{"path", path}, {"wanted", wanted}, {"got", got}});
}

absl::StatusOr<v1::Manifest> ReadManifest(ArtifactStore* artifacts, const Artifact& artifact,
                                          std::int64_t* size_bytes) {
  const std::string name(kManifestName);
  auto bytes = artifacts->ReadAll(artifact.uri, name, kMaxManifestBytes);
  if (!bytes.ok()) {
    if (!HasReason(bytes.status(), Reason::kArtifactNotFound)) return bytes.status();
    return NotAsCommitted(name, artifact.manifest_sha256, "no such file");
  }
  const std::string actual = Sha256Hex(*bytes);
  if (actual != artifact.manifest_sha256) {
    return NotAsCommitted(name, artifact.manifest_sha256, actual);
  }
  if (size_bytes != nullptr) *size_bytes = static_cast<std::int64_t>(bytes->size());
  v1::Manifest manifest;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;  // written by a newer engine
  if (!google::protobuf::util::JsonStringToMessage(*bytes, &manifest, options).ok()) {
    return NotAsCommitted(name, "JSON of quantry.v1.Manifest", "something else");
  }
  return manifest;
}

}  // namespace quantry::server
