// Small POSIX pieces the local stores share. Internal to server/artifacts.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace quantry::server {

// The table's reason for an errno: DISK_FULL, else STORAGE_ERROR.
absl::Status DiskError(std::string_view what, std::string_view path, int error);

// Like mkdir -p, mode 0700.
absl::Status MakeFolders(const std::string& path);

// Writes all of `data` at the file's position.
absl::Status WriteAll(int fd, std::string_view data, std::string_view path);

// Makes the folder's entries durable.
absl::Status SyncFolder(const std::string& path);

// Temporary file, fsync, rename, fsync of the folder. Replaces what is there.
absl::Status WriteFileAtomically(const std::string& path, std::string_view data);

// Bytes of the files in the folder, not of those below it; 0 when it is not there.
absl::StatusOr<std::int64_t> BytesInFolder(const std::string& path);

}  // namespace quantry::server
