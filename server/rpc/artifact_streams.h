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

grpc::ServerReadReactor<v1::UploadBlobRequest>* StartUpload(const ServiceContext* context,
                                                            grpc::CallbackServerContext* call,
                                                            v1::UploadBlobResponse* response);

grpc::ServerWriteReactor<v1::ReadArtifactResponse>* StartRead(
    const ServiceContext* context, grpc::CallbackServerContext* call,
    const v1::ReadArtifactRequest& request);

}  // namespace quantry::server
