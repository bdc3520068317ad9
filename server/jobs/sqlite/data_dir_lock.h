#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace quantry::server::sqlite {

// Exclusive use of a data folder, held by {data_dir}/lock (flock) for the life
// of the object; the kernel frees it when the process dies. The file holds the
// owner's pid for messages only.
class DataDirLock {
 public:
  // Creates the folder (mode 0700) when absent. Errors: FAILED_PRECONDITION
  // DATA_DIR_LOCKED, UNAVAILABLE STORE_UNAVAILABLE, RESOURCE_EXHAUSTED DISK_FULL.
  static absl::StatusOr<DataDirLock> Acquire(const std::string& data_dir);
  ~DataDirLock();
  DataDirLock(DataDirLock&& other) noexcept;
  DataDirLock& operator=(DataDirLock&&) = delete;

 private:
  explicit DataDirLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace quantry::server::sqlite
