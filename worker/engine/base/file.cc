#include "worker/engine/base/file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

EngineError EnvironmentError(const char* reason, const std::string& action, const std::string& path,
                             int error) {
  return EngineError(FailureClass::kEnvironment, reason,
                     StrCat("cannot ", action, " ", path, ": ", std::strerror(error)),
                     {{"path", path}, {"errno", std::to_string(error)}});
}

// EFBIG: a limit of the process or, without one, of the file system.
EngineError TooLarge(const std::string& path, uint64_t total_bytes) {
  struct rlimit limit = {};
  const bool limited = ::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
  return EngineError(
      FailureClass::kEnvironment, "DISK_FULL",
      StrCat(path, " wants ", total_bytes, " bytes in all, more than ",
             limited ? StrCat("a file of this process may have: ", limit.rlim_cur,
                              ". Raise the limit (--engine-max-file-bytes of the worker)")
                     : std::string("a file on that disk may have. Use another file system"),
             " and run again"),
      {{"path", path}, {"bytes_wanted", std::to_string(total_bytes)}});
}

EngineError WriteError(const std::string& path, uint64_t total_bytes, int error) {
  if (error == EFBIG) return TooLarge(path, total_bytes);
  if (error != ENOSPC && error != EDQUOT) {
    return EnvironmentError("STORAGE_ERROR", "write", path, error);
  }
  return EngineError(FailureClass::kEnvironment, "DISK_FULL",
                     StrCat("no space left while writing ", path, ", which wants ", total_bytes,
                            " bytes in all: free space on that disk and run again"),
                     {{"path", path}, {"bytes_wanted", std::to_string(total_bytes)}});
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

void SyncFolder(const std::string& path) {
  std::string folder = std::filesystem::path(path).parent_path().string();
  if (folder.empty()) folder = ".";
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some file systems cannot sync a folder (EINVAL): the rename then is as
  // durable as they make it.
  if (fd.get() >= 0 && ::fsync(fd.get()) != 0 && errno != EINVAL) {
    throw EnvironmentError("STORAGE_ERROR", "sync the folder", folder, errno);
  }
}

// A descriptor, or -1 where there is no such file.
int OpenToRead(const std::string& path) {
  // Nothing may block on a FIFO which poses as a file.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0 && errno != ENOENT && errno != ENOTDIR) {
    throw EnvironmentError("STORAGE_ERROR", "open", path, errno);
  }
  return fd;
}

// Bytes of the regular file behind `fd`; -1 is no file.
uint64_t CheckedSize(int fd, const std::string& path, uint64_t max_bytes,
                     const std::string& reason) {
  struct stat status = {};
  if (fd < 0) throw UserError(reason, StrCat("there is no file ", path), {{"path", path}});
  if (::fstat(fd, &status) != 0) throw EnvironmentError("STORAGE_ERROR", "read", path, errno);
  if (!S_ISREG(status.st_mode)) {
    throw UserError(reason, StrCat(path, " is not a regular file"), {{"path", path}});
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > max_bytes) {
    throw UserError(reason, StrCat(path, " has ", size, " bytes, at most ", max_bytes, " are read"),
                    {{"path", path}, {"bytes", std::to_string(size)}});
  }
  return size;
}

}  // namespace

void CheckReadable(const std::string& path, uint64_t max_bytes, const std::string& reason) {
  const Descriptor fd(OpenToRead(path));
  CheckedSize(fd.get(), path, max_bytes, reason);
}

std::string ReadFile(const std::string& path, uint64_t max_bytes, const std::string& reason) {
  const Descriptor fd(OpenToRead(path));
  const uint64_t size = CheckedSize(fd.get(), path, max_bytes, reason);
  std::string content(size, '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t n = ::read(fd.get(), content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw EnvironmentError("STORAGE_ERROR", "read", path, errno);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  content.resize(done);
  return content;
}

// A disk that cannot say throws as in Exists.
bool IsRegularFile(const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) == 0) return S_ISREG(status.st_mode);
  for (const int none : {ENOENT, ENOTDIR, EACCES, ELOOP, ENAMETOOLONG}) {
    if (errno == none) return false;
  }
  throw EnvironmentError("STORAGE_ERROR", "look at", path, errno);
}

bool Exists(const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR) return false;
  throw EnvironmentError("STORAGE_ERROR", "look at", path, errno);
}

bool IsOfTheDisk(const EngineError& error) {
  return error.reason == "READ_FAILED" || error.reason == "STORAGE_ERROR";
}

void WriteFully(int fd, const void* data, uint64_t bytes, const std::string& path,
                uint64_t total_bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd, next, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw WriteError(path, total_bytes, errno);
    next += n;
    bytes -= static_cast<uint64_t>(n);
  }
}

int CreatePartial(const std::string& partial) {
  const int fd = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) throw WriteError(partial, 0, errno);
  return fd;
}

void CommitFile(int fd, const std::string& partial, const std::string& path) {
  const int synced = ::fsync(fd) == 0 ? 0 : errno;
  const int closed = ::close(fd) == 0 ? 0 : errno;
  if (synced != 0 || closed != 0) {
    std::error_code ignored;
    const uint64_t size = std::filesystem::file_size(partial, ignored);
    throw WriteError(path, ignored ? 0 : size, synced != 0 ? synced : closed);
  }
  if (::rename(partial.c_str(), path.c_str()) != 0) throw WriteError(path, 0, errno);
  SyncFolder(path);
}

void WriteFileAtomically(const std::string& path, std::string_view content) {
  const std::string partial = path + ".partial";
  const int fd = CreatePartial(partial);
  try {
    WriteFully(fd, content.data(), content.size(), path, content.size());
  } catch (...) {
    ::close(fd);
    ::unlink(partial.c_str());
    throw;
  }
  CommitFile(fd, partial, path);
}

}  // namespace quantry::engine
