#include "worker/agent/engine_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "common/confined.h"

namespace quantry::agent {

absl::StatusOr<EngineFile> EngineFile::Open(const std::string& folder, const std::string& name) {
  const auto parent = OpenFolder(folder);
  if (!parent.ok()) return parent.status();
  // O_NONBLOCK: no pipe is waited for.
  auto fd = OpenBeneath(parent->get(), name, O_RDONLY | O_NONBLOCK, Symlinks::kRefuse);
  if (!fd.ok()) return fd.status();
  struct stat info {};
  if (fstat(fd->get(), &info) != 0) {
    return absl::InternalError("stat " + name + ": " + std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::PermissionDeniedError("'" + name + "' is no regular file");
  }
  return EngineFile(*std::move(fd), info.st_size);
}

absl::StatusOr<std::string> EngineFile::Read(std::int64_t max_bytes) const {
  if (size_bytes_ > max_bytes) {
    return absl::ResourceExhaustedError("wanted at most " + std::to_string(max_bytes) +
                                        " bytes, got " + std::to_string(size_bytes_));
  }
  std::string bytes(static_cast<std::size_t>(size_bytes_), '\0');
  std::ifstream in(path(), std::ios::binary);
  if (!in.read(bytes.data(), size_bytes_)) return absl::InternalError("cannot be read whole");
  return bytes;
}

}  // namespace quantry::agent
