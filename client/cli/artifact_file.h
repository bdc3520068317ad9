#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "client/cli/connection.h"
#include "client/cli/options.h"
#include "quantry/v1/artifact.pb.h"

namespace quantry::cli {

inline constexpr char kManifestName[] = "manifest.json";
// A manifest has a row a file and a row a block: 64 MiB is far beyond any.
inline constexpr int64_t kMaxManifestBytes = 64 << 20;

// The artifact a user means: by its own uid or name, or as what a job made.
// FAILED_PRECONDITION when the job has none (yet).
absl::StatusOr<std::string> FindArtifact(Context& context, Connection& connection,
                                         const std::string& source);

// The server's record of an artifact, by its full name.
absl::StatusOr<v1::Artifact> GetArtifact(Connection& connection, const std::string& name);

// One small file of an artifact, whole, over broken connections. DATA_LOSS ARTIFACT_CORRUPT when it
// has another sha256 than `sha256` twice, or more than `max_bytes`.
absl::StatusOr<std::string> FetchFile(Connection& connection, const std::string& artifact,
                                      const std::string& path, const std::string& sha256,
                                      int64_t max_bytes);

// manifest.json as a message; DATA_LOSS ARTIFACT_CORRUPT when it is none.
absl::StatusOr<v1::Manifest> ParseManifest(const std::string& json);

}  // namespace quantry::cli
