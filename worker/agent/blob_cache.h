#pragma once

#include <cstdint>
#include <filesystem>
#include <shared_mutex>
#include <string>
#include <vector>

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
  struct Limits {
    std::int64_t spare_bytes = 0;  // of the disk, left free by a fetch
    std::int64_t max_bytes = 0;    // of the blobs that no running job has; 0 = no limit
  };
  explicit BlobCache(std::string root) : BlobCache(std::move(root), Limits()) {}
  BlobCache(std::string root, const Limits& limits) : root_(std::move(root)), limits_(limits) {}

  const std::string& root() const { return root_; }

  // Makes `target` a link to (or a copy of) the blob, replacing what is there,
  // and fetches it from `blobs` under its sha256 when needed. ARTIFACT_CORRUPT (DATA_LOSS) when the
  // stored bytes are not the announced ones; SOURCE_MISSING when there are none.
  absl::Status Place(Storage& blobs, const std::string& sha256, std::int64_t size_bytes,
                     const std::string& target, const TransferCheck& check);

  // Removes blobs that no running job has, longest unused first, until `bytes` are freed or
  // none is left. Waits for no fetch.
  void Evict(std::int64_t bytes);

  // Removes as many of them as are above the limit, and nothing of which a part has come.
  void Trim();

 private:
  struct Entry {
    std::filesystem::file_time_type used;
    std::filesystem::path path;
    std::int64_t size;
  };
  // What no running job has, longest unused first: blobs, and what of others has come so far.
  std::vector<Entry> Unused(bool parts_too);
  // The first of `entries` until `bytes` are freed.
  static void Remove(const std::vector<Entry>& entries, std::int64_t bytes);
  absl::Status Fetch(Storage& blobs, const std::string& sha256, std::int64_t size_bytes,
                     const std::string& target, const TransferCheck& check);
  void MakeRoom(std::int64_t bytes);
  std::string PathOf(const std::string& sha256) const;

  const std::string root_;
  const Limits limits_;
  std::shared_mutex fetching_;  // shared while bytes come in
};

}  // namespace quantry::agent
