#include "worker/agent/http_body.h"

#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/errors.h"

namespace quantry::agent {
namespace {

absl::Status DiskError(const std::string& what, const std::string& path, int error) {
  const std::string message = what + " " + path + ": " + std::strerror(error);
  const bool full = error == ENOSPC || error == EDQUOT;
  return MakeError(full ? Reason::kDiskFull : Reason::kStorageError, message, {{"path", path}});
}

absl::Status WriteAll(int fd, std::string_view data, const std::string& file) {
  while (!data.empty()) {
    const ssize_t written = write(fd, data.data(), data.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return DiskError("write", file, errno);
    data.remove_prefix(static_cast<std::size_t>(written));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status HttpBody::Take(std::string_view data, const HttpAnswer& answer) {
  // A server that ignores the range begins anew.
  if (begins_ && answer.status == 200 && offset() > 0) {
    if (absl::Status status = Restart(); !status.ok()) return status;
  }
  begins_ = false;
  if (absl::Status status = Append(data); !status.ok()) return status;
  return check_(static_cast<std::int64_t>(data.size()));
}

absl::Status MemoryBody::Append(std::string_view data) {
  if (static_cast<std::int64_t>(text.size() + data.size()) > max_bytes_) {
    return MakeError(Reason::kResourceLimit,
                     url() + ": wanted at most " + std::to_string(max_bytes_) + " bytes, got more");
  }
  text.append(data);
  return absl::OkStatus();
}

FileBody::FileBody(const std::string& url, std::string path, std::int64_t size_bytes,
                   const TransferCheck& check)
    : HttpBody(url, check),
      path_(std::move(path)),
      size_bytes_(size_bytes),
      fd_(open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)) {}

absl::Status FileBody::Open() {
  if (!fd_.ok()) return DiskError("open", path_, errno);
  offset_ = lseek(fd_.get(), 0, SEEK_END);
  return offset_ > size_bytes_ ? Restart() : absl::OkStatus();
}

absl::Status FileBody::Sync() const {
  return fsync(fd_.get()) == 0 ? absl::OkStatus() : DiskError("fsync", path_, errno);
}

absl::Status FileBody::Restart() {
  offset_ = 0;
  if (ftruncate(fd_.get(), 0) == 0 && lseek(fd_.get(), 0, SEEK_SET) == 0) return absl::OkStatus();
  return DiskError("truncate", path_, errno);
}

absl::Status FileBody::Append(std::string_view data) {
  if (offset_ + static_cast<std::int64_t>(data.size()) > size_bytes_) {
    return MakeError(Reason::kStorageError, url() + ": wanted " + std::to_string(size_bytes_) +
                                                " bytes as the hub lists, got more");
  }
  if (absl::Status status = WriteAll(fd_.get(), data, path_); !status.ok()) return status;
  offset_ += static_cast<std::int64_t>(data.size());
  return absl::OkStatus();
}

}  // namespace quantry::agent
