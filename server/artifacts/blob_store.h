// Uploaded inputs, content-addressed per tenant. A blob is there whole or not
// at all; an interrupted upload keeps what it has and goes on from there.
// Thread-safe; calls block on the disk. An upload belongs to one thread at a
// time.
//
// Crash: a finished blob is durable before Finish returns. Bytes of an
// unfinished upload may be lost or damaged; the sha256 check at the end finds
// that, and the upload starts over. Who reads a blob checks its sha256 once more.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/awaited.h"
#include "common/storage.h"

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
  // upload is discarded. FAILED_PRECONDITION when bytes are missing. UNAVAILABLE
  // STORAGE_ERROR keeps the bytes: an upload that begins where they end is
  // finished without any more; so does a status of `check`, which is returned.
  // INTERNAL, touching nothing, after a call that had all the bytes.
  virtual absl::Status Finish(const TransferCheck& check) = 0;
  absl::Status Finish() { return Finish(nullptr); }
};

// What a program on this machine reads of a blob.
enum class BlobPart {
  kWhole,
  kHead,  // of a safetensors file its header: a quote reads no more
  kSize,  // nothing but how long it is: all that a quote looks at of a large text
};

class BlobStore {
 public:
  virtual ~BlobStore() = default;
  // A finished blob of another size than announced is not found: complete is
  // false and an upload will fail on its digest. One that is found counts as
  // new for the collection of garbage: its job is about to come.
  virtual absl::StatusOr<BlobState> Find(std::string_view tenant, const BlobId& blob) = 0;
  // Each of them, in order.
  virtual absl::StatusOr<std::vector<BlobState>> FindAll(std::string_view tenant,
                                                         const std::vector<BlobId>& blobs,
                                                         const Awaited& awaited);
  // OUT_OF_RANGE UPLOAD_OFFSET (metadata "committed") when `offset` is not
  // where the upload stands; 0 always starts over. ABORTED UPLOAD_IN_PROGRESS
  // when somebody else is uploading the same blob.
  virtual absl::StatusOr<std::unique_ptr<BlobUpload>> Begin(std::string_view tenant,
                                                            const BlobId& blob,
                                                            std::int64_t offset) = 0;
  // Bytes of all the tenant's blobs, those in progress here too. Lists the folder; an object
  // store's, unless this server finished a blob, every 5 s at most.
  virtual absl::StatusOr<std::int64_t> StoredBytes(std::string_view tenant) = 0;
  // The largest blob there is room for by the store's own rules.
  virtual std::int64_t max_blob_bytes() const { return std::numeric_limits<std::int64_t>::max(); }
  // Folder that holds the tenant's finished blobs, named by sha256.
  virtual std::string Uri(std::string_view tenant) const = 0;
  // Folder of all tenants' blobs.
  virtual std::string RootUri() const = 0;
  // Folder on this machine with uploads in progress, laid out as RootUri() is;
  // "" when they lie below RootUri().
  virtual std::string SpoolUri() const = 0;
  // Makes `path`, whose folder is there, the finished blob: a link to it, or a
  // copy of the part. What was not copied reads as zeros. Returns the bytes copied.
  // RESOURCE_EXHAUSTED RESOURCE_LIMIT when they would be more than `most`; NOT_FOUND;
  // DATA_LOSS ARTIFACT_CORRUPT when a whole copy has another sha256.
  virtual absl::StatusOr<std::int64_t> Place(std::string_view tenant, const BlobId& blob,
                                             BlobPart part, std::int64_t most,
                                             const std::string& path) = 0;
};

// {tenant}/{name}: where a marker says when Find() last found a blob whose own
// time cannot be set.
inline constexpr std::string_view kAskedFolder = ".asked";
inline constexpr std::string_view kPartialFolder = ".partial";

// The store of a root, opened: file:///folder or a URI that common/storage.h
// knows. `spool` is a folder of this server's own for uploads in progress to an
// object store. Errors: INVALID_CONFIG.
absl::StatusOr<std::unique_ptr<BlobStore>> OpenBlobStore(const std::string& root_uri,
                                                         const std::string& spool);

// INVALID_ARGUMENT for what names no blob.
absl::Status CheckBlobId(std::string_view tenant, const BlobId& blob);

}  // namespace quantry::server
