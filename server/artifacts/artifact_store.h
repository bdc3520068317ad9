// Reading and deleting finished artifacts. An artifact is an immutable set of
// files below one URI prefix, written by a worker, described by manifest.json.
// Thread-safe; calls block on the disk or the network.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quantry::server {

// Random access to one file. Belongs to one thread at a time.
class ArtifactReader {
 public:
  virtual ~ArtifactReader() = default;
  virtual std::int64_t size_bytes() const = 0;
  // At most `length` bytes from `offset`; fewer only at the end of the file.
  virtual absl::StatusOr<std::string> ReadAt(std::int64_t offset, std::int64_t length) = 0;
};

class ArtifactStore {
 public:
  virtual ~ArtifactStore() = default;

  // Everything lies below it.
  virtual std::string RootUri() const = 0;
  // The prefix an attempt writes below: {root}/{tenant}/{job uid}/{epoch}. No
  // two attempts share one, so a stale worker cannot touch a committed file.
  virtual std::string OutputUri(std::string_view tenant, std::string_view job_uid,
                                std::int64_t epoch) const = 0;
  // Where an attempt puts its checkpoints.
  virtual std::string CheckpointUri(std::string_view tenant, std::string_view job_uid,
                                    std::int64_t epoch) const = 0;

  // NOT_FOUND; INVALID_ARGUMENT for a path that is not a clean relative one;
  // PERMISSION_DENIED for a URI outside the root.
  virtual absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(std::string_view uri,
                                                               std::string_view path) = 0;
  // Whole file; RESOURCE_EXHAUSTED when larger than `max_bytes`.
  absl::StatusOr<std::string> ReadAll(std::string_view uri, std::string_view path,
                                      std::int64_t max_bytes);
  // Removes everything any attempt of the job wrote. Missing is fine.
  // UNAVAILABLE: the store does not answer, other jobs would fare the same;
  // PERMISSION_DENIED: it refuses this one.
  virtual absl::Status DeleteJob(std::string_view tenant, std::string_view job_uid) = 0;

 protected:
  // INVALID_ARGUMENT unless both can be parts of a path.
  static absl::Status CheckJob(std::string_view tenant, std::string_view job_uid);
};

// Whether `uri` is `folder`, a URI of a store, or lies below it.
bool LiesBelow(std::string_view folder, std::string_view uri);

// The store behind a root: file:///folder, s3://bucket/prefix and what else
// common/storage.h knows. Errors: INVALID_CONFIG.
absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenArtifactStore(const std::string& root_uri);

}  // namespace quantry::server
