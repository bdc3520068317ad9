// Shared by the implementations of Storage and of the cache beside them; not for users of
// storage.h.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/storage.h"

namespace quantry::storage_internal {

// Bytes moved at a time: large enough for object stores, small enough that a
// cancelled transfer stops at once.
inline constexpr std::int64_t kChunkBytes = 1 << 20;

// Of the names of temporaries, which stand beside what they become.
inline constexpr std::string_view kTemporaryPrefix = ".tmp-";

absl::Status ErrnoStatus(int error, std::string_view action, std::string_view path);

// A file that appears under its name only when Commit succeeds; the temporary
// is removed otherwise.
class PendingFile {
 public:
  // Creates the folders on the way.
  static absl::StatusOr<PendingFile> Create(const std::string& path);
  PendingFile(PendingFile&& other) noexcept;
  PendingFile& operator=(PendingFile&&) = delete;
  ~PendingFile();

  absl::Status Append(std::string_view bytes);
  // fsync, rename over `path`, fsync of the folder.
  absl::Status Commit();

 private:
  PendingFile(int fd, std::string temporary, std::string path)
      : fd_(fd), temporary_(std::move(temporary)), path_(std::move(path)) {}
  int fd_;
  std::string temporary_;
  std::string path_;
};

// Storage::Read of every kind of storage: the whole object, at most max_bytes.
absl::StatusOr<std::string> ReadWhole(Storage& storage, std::string_view path,
                                      std::int64_t max_bytes);

absl::StatusOr<std::unique_ptr<Storage>> OpenLocalStorage(const std::string& folder);
absl::StatusOr<std::unique_ptr<Storage>> OpenArrowStorage(std::string_view uri);
// What an object store's error text about `path` (bucket/key) means: denied, not
// found, else unavailable. Names of objects hold any digits and words: only what
// the store itself says counts.
absl::StatusCode CodeOfFailure(std::string_view text, std::string_view path);
void FinalizeArrow();

}  // namespace quantry::storage_internal
