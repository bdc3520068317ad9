// Artifacts in an object store.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/artifacts/artifact_store.h"

namespace quantry::server {

// Errors: INVALID_CONFIG; see OpenObjectRoot (object_root.h).
absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenObjectArtifactStore(const std::string& root_uri);

}  // namespace quantry::server
