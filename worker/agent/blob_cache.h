#pragma once

#include <cstdint>
#include <shared_mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/storage.h"

namespace quantry::agent {

// Uploaded files by their sha256, kept across jobs: {root}/{2 hex}/{sha256},
// read-only. Bytes are verified each time they are taken, so a damaged copy is
// never used: a bad cached one is fetched again, a bad stored one is an error.
// Thread-safe.
class BlobCache {
 public:
  explicit BlobCache(std::string root) : root_(std::move(root)) {}

  const std::string& root() const { return root_; }

  // Makes `target` a link to (or a copy of) the blob, replacing what is there,
  // and fetches it from `blobs` under its sha256 when needed. ARTIFACT_CORRUPT (DATA_LOSS) when the
  // stored bytes are not the announced ones; SOURCE_MISSING when there are none.
  absl::Status Place(Storage& blobs, const std::string& sha256, std::int64_t size_bytes,
                     const std::string& target, const TransferCheck& check);

  // Removes blobs, longest unused first, until `bytes` are freed or none is
  // left; files linked into running jobs stay readable there. Waits for no fetch.
  void Evict(std::int64_t bytes);

 private:
  absl::Status Fetch(Storage& blobs, const std::string& sha256, std::int64_t size_bytes,
                     const std::string& target, const TransferCheck& check);
  std::string PathOf(const std::string& sha256) const;

  const std::string root_;
  std::shared_mutex fetching_;  // shared while bytes come in
};

}  // namespace quantry::agent
