// The manifest of a committed artifact, as the server trusts it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "quantry/v1/artifact.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/jobs/job.h"

namespace quantry::server {

inline constexpr std::string_view kManifestName = "manifest.json";

// A manifest larger than this was not written by an engine of ours.
inline constexpr std::int64_t kMaxManifestBytes = 64 << 20;

// DATA_LOSS ARTIFACT_CORRUPT: the file at `path` is not what was committed.
absl::Status NotAsCommitted(const std::string& path, const std::string& wanted,
                            const std::string& got);

// DATA_LOSS ARTIFACT_CORRUPT when its bytes differ from what was committed or do
// not parse. `size_bytes`, its own, may be null.
absl::StatusOr<v1::Manifest> ReadManifest(ArtifactStore* artifacts, const Artifact& artifact,
                                          std::int64_t* size_bytes = nullptr);

}  // namespace quantry::server
