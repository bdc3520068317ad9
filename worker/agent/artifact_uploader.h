#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/storage.h"
#include "quantry/v1/artifact.pb.h"
#include "quantry/v1/engine.pb.h"
#include "quantry/v1/worker_service.pb.h"
#include "worker/agent/patience.h"

namespace quantry::agent {

// Copies a finished artifact from `output_dir` below lease.output_uri: the files
// manifest.json lists, each checked against its size and sha256 on the way,
// and manifest.json last, so that a prefix without it is garbage. Files the
// manifest does not list stay behind. Each file waits with `patience` for a
// store that does not answer.
//
// Returns the CompleteJob call without session and events. Errors:
// ENGINE_PROTOCOL (no manifest, or not the one the engine announced),
// ARTIFACT_CORRUPT, DISK_FULL, STORAGE_ERROR; CANCELLED when `check` says so.
absl::StatusOr<v1::CompleteJobRequest> UploadArtifact(const v1::Lease& lease,
                                                      const std::string& output_dir,
                                                      const v1::EngineCompleted& completed,
                                                      const TransferCheck& check,
                                                      Patience& patience);

// An engine's manifest.json. ENGINE_PROTOCOL when it is none, or lists no files
// or too many. Fields of a newer engine are passed over; paths are not checked.
absl::StatusOr<v1::Manifest> ParseManifest(const std::string& json);

// What a job has to show, from its manifest. Perplexity and KL divergence that
// were not finite, which a manifest leaves out, are infinity.
v1::JobResult ResultFromManifest(const v1::Manifest& manifest, const std::string& artifact_uri);

}  // namespace quantry::agent
