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
  // A fetch makes room for the blob and `spare_bytes`.
  explicit BlobCache(std::string root, std::int64_t spare_bytes = 0)
      : root_(std::move(root)), spare_bytes_(spare_bytes) {}

  const std::string& root() const { return root_; }

  // Makes `target` a link to (or a copy of) the blob, replacing what is there,
  // and fetches it from `blobs` under its sha256 when needed. ARTIFACT_CORRUPT (DATA_LOSS) when the
  // stored bytes are not the announced ones; SOURCE_MISSING when there are none.
  absl::Status Place(Storage& blobs, const std::string& sha256, std::int64_t size_bytes,
                     const std::string& target, const TransferCheck& check);

  // Removes blobs that no running job has, longest unused first, until `bytes` are freed or
  // none is left. Waits for no fetch.
  void Evict(std::int64_t bytes);

 private:
  absl::Status Fetch(Storage& blobs, const std::string& sha256, std::int64_t size_bytes,
                     const std::string& target, const TransferCheck& check);
  void MakeRoom(std::int64_t bytes);
  std::string PathOf(const std::string& sha256) const;

  const std::string root_;
  const std::int64_t spare_bytes_;
  std::shared_mutex fetching_;  // shared while bytes come in
};

}  // namespace quantry::agent
