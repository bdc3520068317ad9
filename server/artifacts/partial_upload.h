#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/digest.h"
#include "common/unique_fd.h"
#include "server/artifacts/blob_store.h"

namespace quantry::server {

// The bytes of an upload in progress: one file, locked with flock while the
// object lives, so that a blob has one upload at a time on a machine. Hashes
// what is appended. Belongs to one thread at a time; errors are those of
// BlobUpload and BlobStore::Begin.
class PartialUpload {
 public:
  // Goes on at `offset` with what an earlier one left, or starts over at 0. The
  // file's folder is there.
  static absl::StatusOr<PartialUpload> Open(const std::string& path, const BlobId& blob,
                                            std::int64_t offset);
  // What an earlier one left.
  static std::int64_t CommittedBytes(const std::string& path, const BlobId& blob);

  PartialUpload(PartialUpload&&) noexcept = default;
  PartialUpload& operator=(PartialUpload&&) noexcept = default;

  const std::string& path() const { return path_; }
  std::int64_t committed_bytes() const { return committed_; }
  absl::Status Append(std::string_view data);
  // All bytes are there and have the announced sha256. An upload that had all
  // its bytes is over, whatever the digest: Append and a second check refuse
  // it with INTERNAL, and touch no file, which may be another upload's by now.
  absl::Status CheckWhole();
  // Makes what was appended durable.
  absl::Status Sync();
  // BLOB_MISMATCH for content with the digest `actual`; the bytes go.
  absl::Status Discard(const std::string& actual);

 private:
  PartialUpload(BlobId blob, std::string path, UniqueFd fd)
      : blob_(std::move(blob)), path_(std::move(path)), fd_(std::move(fd)) {}
  absl::Status Resume(std::int64_t offset);

  BlobId blob_;
  std::string path_;
  UniqueFd fd_;
  Sha256 hash_;
  std::int64_t committed_ = 0;
  bool over_ = false;
};

}  // namespace quantry::server
