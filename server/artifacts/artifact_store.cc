#include "server/artifacts/artifact_store.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/storage.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/artifacts/object_artifact_store.h"

namespace quantry::server {

absl::StatusOr<std::string> ArtifactStore::ReadAll(std::string_view uri, std::string_view path,
                                                   std::int64_t max_bytes) {
  auto reader = Open(uri, path);
  if (!reader.ok()) return reader.status();
  if ((*reader)->size_bytes() > max_bytes) {
    return MakeError(Reason::kResourceLimit,
                     absl::StrCat("'", std::string(path), "' has ", (*reader)->size_bytes(),
                                  " bytes, at most ", max_bytes, " are read"));
  }
  return (*reader)->ReadAt(0, (*reader)->size_bytes());
}

absl::Status ArtifactStore::CheckJob(std::string_view tenant, std::string_view job_uid) {
  if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
  if (IsUuid(job_uid)) return absl::OkStatus();
  return MakeError(Reason::kInvalidArgument,
                   absl::StrCat("wanted a UUID, got '", std::string(job_uid), "'"));
}

bool LiesBelow(std::string_view folder, std::string_view uri) {
  if (uri == folder) return true;
  const size_t query = std::min(folder.find('?'), folder.size());
  const std::string base = absl::StrCat(std::string(folder.substr(0, query)), "/");
  const size_t options = folder.size() - query;
  if (!uri.starts_with(base) || uri.size() < base.size() + options) return false;
  const std::string_view rest = uri.substr(base.size(), uri.size() - base.size() - options);
  // Escapes could mean another place than they show.
  return uri.substr(base.size() + rest.size()) == folder.substr(query) &&
         rest.find_first_of("%?#\\") == std::string_view::npos && CheckRelativePath(rest).ok();
}

absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenArtifactStore(const std::string& root_uri) {
  return root_uri.starts_with("file:") ? OpenLocalArtifactStore(root_uri)
                                       : OpenObjectArtifactStore(root_uri);
}

}  // namespace quantry::server
