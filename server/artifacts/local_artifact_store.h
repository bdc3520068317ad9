// ArtifactStore in a local folder: {root}/{tenant}/{job uid}/{epoch}/...
// Files are opened with the kernel's confinement (confined.h): neither a
// manifest's path nor a symbolic link in an artifact leads out of it.
#pragma once

#include <memory>
#include <string>

#include "server/artifacts/artifact_store.h"

namespace quantry::server {

// `root_uri`: file:///absolute/folder; created when absent. INVALID_ARGUMENT
// for other schemes.
absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenLocalArtifactStore(const std::string& root_uri);

}  // namespace quantry::server
