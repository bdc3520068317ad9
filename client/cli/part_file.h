#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/digest.h"
#include "common/unique_fd.h"

namespace quantry::cli {

// A download in the making: bytes gather in "{target}.{sha256 start}.part" and
// become `target` by one rename when complete, correct and on disk. What was
// written before a crash or Ctrl-C is taken up by the next Open(). One object at
// a time has a part file, of all processes, and keeps one descriptor open. Not
// thread-safe.
class PartFile {
 public:
  // Makes missing folders; reads and hashes what an earlier try left.
  // Errors: FAILED_PRECONDITION when the path cannot be written, or another
  // PartFile writes it.
  static absl::StatusOr<PartFile> Open(const std::string& target, const std::string& sha256);

  const std::string& target() const { return target_; }
  int64_t size() const { return size_; }
  absl::Status Append(std::string_view data);
  // Back to zero bytes.
  absl::Status Reset();
  // True when the bytes so far are the whole file. Call once before Commit().
  bool Matches(int64_t size_bytes);
  // To the disk: Commit() has only the rename left to do.
  absl::Status Sync();
  // Syncs and renames over `target`.
  absl::Status Commit();
  void Discard();

 private:
  PartFile(std::string target, std::string sha256, std::string part);
  absl::Status Hold();
  absl::Status Adopt();

  std::string target_;
  std::string sha256_;
  std::string part_;
  UniqueFd fd_;
  Sha256 hash_;
  int64_t size_ = 0;
};

// Removes a file, if it is there, so that it stays removed after a power loss.
absl::Status RemoveAndSync(const std::string& path);

// Renames a file within its folder, if it is there, over what has the new name.
absl::Status RenameAndSync(const std::string& from, const std::string& to);

// Removes what tries of other contents of `target` left beside it. Only while
// no other pull can be there.
void RemoveOldParts(const std::string& target);

}  // namespace quantry::cli
