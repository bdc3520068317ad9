// Uploaded inputs, content-addressed per tenant. A blob is there whole or not
// at all; an interrupted upload keeps what it has and goes on from there.
// Thread-safe; calls block on the disk. An upload belongs to one thread at a
// time.
//
// Crash: a finished blob is durable before Finish returns. Bytes of an
// unfinished upload may be lost or damaged; the sha256 check at the end finds
// that, and the upload starts over.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quantry::server {

struct BlobId {
  std::string sha256;  // 64 lower-case hex digits
  std::int64_t size_bytes = 0;
};

struct BlobState {
  bool complete = false;
  std::int64_t committed_bytes = 0;  // = size when complete
};

// One upload in progress. Dropping it unfinished keeps the bytes.
class BlobUpload {
 public:
  virtual ~BlobUpload() = default;
  virtual std::int64_t committed_bytes() const = 0;
  // OUT_OF_RANGE when more than the announced size would be written;
  // RESOURCE_EXHAUSTED when the disk is full.
  virtual absl::Status Append(std::string_view data) = 0;
  // DATA_LOSS BLOB_MISMATCH when the content is not the announced one: the
  // upload is discarded. FAILED_PRECONDITION when bytes are missing.
  virtual absl::Status Finish() = 0;
};

class BlobStore {
 public:
  virtual ~BlobStore() = default;
  // A finished blob of another size than announced is not found: complete is
  // false and an upload will fail on its digest. One that is found counts as
  // new for the collection of garbage: its job is about to come.
  virtual absl::StatusOr<BlobState> Find(std::string_view tenant, const BlobId& blob) = 0;
  // OUT_OF_RANGE UPLOAD_OFFSET (metadata "committed") when `offset` is not
  // where the upload stands; 0 always starts over. ABORTED UPLOAD_IN_PROGRESS
  // when somebody else is uploading the same blob.
  virtual absl::StatusOr<std::unique_ptr<BlobUpload>> Begin(std::string_view tenant,
                                                            const BlobId& blob,
                                                            std::int64_t offset) = 0;
  // Bytes of all the tenant's blobs, those in progress too. Lists the folder.
  virtual absl::StatusOr<std::int64_t> StoredBytes(std::string_view tenant) = 0;
  // Folder that holds the tenant's finished blobs, named by sha256.
  virtual std::string Uri(std::string_view tenant) const = 0;
  // Folder of all tenants' blobs.
  virtual std::string RootUri() const = 0;
  // Local file of a finished blob, for tools on this machine.
  virtual std::string LocalPath(std::string_view tenant, std::string_view sha256) const = 0;
};

}  // namespace quantry::server
