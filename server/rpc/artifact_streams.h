// The two byte streams of ArtifactService. Each reactor owns itself, holds one
// chunk at a time and does its disk work on the stream executor.
#pragma once

#include <grpcpp/grpcpp.h>

#include "quantry/v1/artifact_service.pb.h"
#include "server/rpc/service_context.h"

namespace quantry::server {

// Uploads and reads of one principal at once, at one server. Each may hold a
// message, a thread's turn and a file.
inline constexpr int kArtifactStreamsOfOne = 64;

// A manifest larger than this was not written by an engine of ours.
inline constexpr std::int64_t kMaxManifestBytes = 64 << 20;

grpc::ServerReadReactor<v1::UploadBlobRequest>* StartUpload(const ServiceContext* context,
                                                            grpc::CallbackServerContext* call,
                                                            v1::UploadBlobResponse* response);

grpc::ServerWriteReactor<v1::ReadArtifactResponse>* StartRead(
    const ServiceContext* context, grpc::CallbackServerContext* call,
    const v1::ReadArtifactRequest& request);

// The committed manifest of an artifact. DATA_LOSS ARTIFACT_CORRUPT when its
// bytes differ from what was committed or do not parse. `size_bytes`, its own, may
// be null.
absl::StatusOr<v1::Manifest> ReadManifest(ArtifactStore* artifacts, const Artifact& artifact,
                                          std::int64_t* size_bytes = nullptr);

}  // namespace quantry::server
