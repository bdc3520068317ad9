#include "server/jobs/sqlite/data_dir_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "common/errors.h"

namespace quantry::server::sqlite {
namespace {

absl::Status SystemError(const std::string& what, const std::string& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT;
  const Reason reason = full ? Reason::kDiskFull : Reason::kStoreUnavailable;
  return MakeError(reason, "cannot " + what + " " + path + ": " + std::strerror(error),
                   {{"path", path}, {"error", std::strerror(error)}});
}

absl::Status CreateFolder(const std::string& path) {
  std::error_code error;
  if (std::filesystem::create_directories(path, error)) chmod(path.c_str(), 0700);
  if (error) return SystemError("create the data folder", path, error.value());
  return absl::OkStatus();
}

std::string ReadOwner(int fd) {
  std::array<char, 32> text{};
  ssize_t got = pread(fd, text.data(), text.size(), 0);
  std::string owner(text.data(), got > 0 ? static_cast<size_t>(got) : 0);
  return owner.substr(0, owner.find('\n'));
}

// Best effort: the lock is what counts.
void WriteOwner(int fd) {
  std::string text = std::to_string(getpid()) + "\n";
  if (ftruncate(fd, 0) != 0) return;
  [[maybe_unused]] ssize_t written = pwrite(fd, text.data(), text.size(), 0);
}

}  // namespace

absl::StatusOr<DataDirLock> DataDirLock::Acquire(const std::string& data_dir) {
  absl::Status created = CreateFolder(data_dir);
  if (!created.ok()) return created;
  std::string path = data_dir + "/lock";
  int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return SystemError("open", path, errno);
  DataDirLock lock(fd);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return SystemError("lock", path, errno);
    std::string owner = ReadOwner(fd);
    return MakeError(Reason::kDataDirLocked,
                     "the data folder " + data_dir + " is in use by process " + owner +
                         "; stop it, or choose another --data-dir",
                     {{"data_dir", data_dir}, {"pid", owner}});
  }
  WriteOwner(fd);
  return lock;
}

DataDirLock::~DataDirLock() {
  if (fd_ >= 0) close(fd_);
}

DataDirLock::DataDirLock(DataDirLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

}  // namespace quantry::server::sqlite
