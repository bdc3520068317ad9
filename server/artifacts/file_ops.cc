#include "server/artifacts/file_ops.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/errors.h"

namespace quantry::server {

absl::Status DiskError(std::string_view what, std::string_view path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT;
  const std::string message =
      absl::StrCat("cannot ", std::string(what), " ", std::string(path), ": ", std::strerror(error),
                   full ? "; free some space, then try again" : "");
  return MakeError(full ? Reason::kDiskFull : Reason::kStorageError, message,
                   {{"path", std::string(path)}});
}

absl::Status MakeFolders(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return DiskError("create", path, error.value());
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, std::string_view data, std::string_view path) {
  while (!data.empty()) {
    const ssize_t put = write(fd, data.data(), data.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return DiskError("write", path, errno);
    data.remove_prefix(static_cast<size_t>(put));
  }
  return absl::OkStatus();
}

absl::Status SyncFolder(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.ok() || fsync(fd.get()) != 0) return DiskError("sync", path, errno);
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view data) {
  const std::string temporary = absl::StrCat(path, ".tmp-", getpid());
  {
    const UniqueFd fd(
        open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, S_IRUSR | S_IWUSR));
    if (!fd.ok()) return DiskError("create", temporary, errno);
    if (absl::Status status = WriteAll(fd.get(), data, temporary); !status.ok()) return status;
    if (fsync(fd.get()) != 0) return DiskError("sync", temporary, errno);
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) return DiskError("rename", path, errno);
  return SyncFolder(std::filesystem::path(path).parent_path().string());
}

absl::StatusOr<std::int64_t> BytesInFolder(const std::string& path) {
  std::int64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(path, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code gone;  // finished or collected meanwhile
    const bool file = entry->is_regular_file(gone);
    const std::uintmax_t size = file ? entry->file_size(gone) : 0;
    if (!gone) bytes += static_cast<std::int64_t>(size);
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    return DiskError("list", path, error.value());
  }
  return bytes;
}

}  // namespace quantry::server
