// The messages of one UploadBlob call: a header, then chunks in order, each
// with its crc32c. No gRPC: whose call it is and when it ends is the caller's.
//
// One thread at a time. After an error it takes nothing more; dropped before
// Complete it keeps the bytes for the next try (server/artifacts/blob_store.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "quantry/v1/artifact_service.pb.h"
#include "server/artifacts/blob_store.h"

namespace quantry::server {

// Most bytes of one chunk in either direction.
inline constexpr std::int64_t kChunkBytes = 512 << 10;

// What an upload asks of the service it belongs to. All of them are called.
struct UploadRules {
  std::int64_t max_blob_bytes = 0;
  // Whether the caller may use the name in the header.
  std::function<absl::Status(const v1::UploadBlobRequest& header)> admit;
  // Whether `more` bytes fit into the tenant's quota; 0: whether any do.
  std::function<absl::Status(const std::string& tenant, std::int64_t more)> room;
  // So many bytes were stored.
  std::function<void(std::int64_t bytes)> count;
};

class UploadSession {
 public:
  // `blobs` outlives it.
  UploadSession(BlobStore* blobs, UploadRules rules);

  // INVALID_ARGUMENT for a second header, a chunk before the header or a larger
  // one than there may be; DATA_LOSS CHUNK_CORRUPT; what the rules and the store say.
  absl::Status Take(const v1::UploadBlobRequest& request);
  // The client said that it is done; a broken connection ends here too and
  // then fails for missing bytes, which stay for the next try.
  absl::Status Complete(const TransferCheck& check, v1::UploadBlobResponse* response);
  // Unlocks the partial file, so that the client can retry.
  void Drop() { upload_.reset(); }

 private:
  absl::Status Header(const v1::UploadBlobRequest& request);
  absl::Status Chunk(const v1::UploadBlobRequest::Chunk& chunk);

  BlobStore* const blobs_;
  const UploadRules rules_;
  std::string tenant_;  // empty until the header came
  BlobId blob_;
  std::unique_ptr<BlobUpload> upload_;  // null when the blob is here already
  std::int64_t unchecked_ = 0;          // written since the last look at the quota
};

}  // namespace quantry::server
