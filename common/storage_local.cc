#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "common/digest.h"
#include "common/storage_internal.h"
#include "common/unique_fd.h"

namespace quantry::storage_internal {

namespace fs = std::filesystem;

absl::Status ErrnoStatus(int error, std::string_view action, std::string_view path) {
  const std::string message =
      std::string(action) + " " + std::string(path) + ": " + std::strerror(error);
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(message);
    // What a disk or a network file system says when it is ill: not a bug, and it may get well.
    case EIO:
    case ESTALE:
    case ETIMEDOUT:
    case ENOTCONN:
    case ECONNRESET:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EREMOTEIO:
    case EBUSY:
      return absl::UnavailableError(message);
    default:
      return absl::InternalError(message);
  }
}

namespace {

absl::Status SyncFolder(const std::string& folder) {
  const UniqueFd fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0 || fsync(fd.get()) != 0) return ErrnoStatus(errno, "sync", folder);
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> OpenRegular(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return ErrnoStatus(errno, "open", path);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "stat", path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(path + " is not a regular file");
  }
  return fd;
}

// Feeds a descriptor to `target` and the hash, chunk by chunk.
absl::StatusOr<Transferred> Copy(int from, const std::string& name, PendingFile& target,
                                 const TransferCheck& check) {
  Sha256 hash;
  std::string buffer(kChunkBytes, '\0');
  Transferred done;
  while (true) {
    const ssize_t n = read(from, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read", name);
    if (n == 0) break;
    const std::string_view chunk(buffer.data(), static_cast<std::size_t>(n));
    hash.Update(chunk);
    if (auto status = target.Append(chunk); !status.ok()) return status;
    done.size_bytes += n;
    if (check) {
      if (auto status = check(n); !status.ok()) return status;
    }
  }
  done.sha256 = hash.FinishHex();
  return done;
}

absl::StatusOr<Transferred> CopyFile(const std::string& from, const std::string& to,
                                     const TransferCheck& check) {
  auto source = OpenRegular(from);
  if (!source.ok()) return source.status();
  auto target = PendingFile::Create(to);
  if (!target.ok()) return target.status();
  auto done = Copy(source->get(), from, *target, check);
  if (!done.ok()) return done.status();
  if (auto status = target->Commit(); !status.ok()) return status;
  return done;
}

class LocalReader : public StoredReader {
 public:
  LocalReader(UniqueFd fd, std::int64_t size, std::string name)
      : fd_(std::move(fd)), size_(size), name_(std::move(name)) {}
  std::int64_t size_bytes() const override { return size_; }
  absl::StatusOr<std::string> ReadAt(std::int64_t offset, std::int64_t length) override {
    if (offset < 0 || length < 0) return absl::OutOfRangeError("negative offset or length");
    length = std::min(length, std::max<std::int64_t>(0, size_ - offset));
    std::string bytes(static_cast<std::size_t>(length), '\0');
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n = pread(fd_.get(), bytes.data() + done, bytes.size() - done,
                              offset + static_cast<std::int64_t>(done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoStatus(errno, "read", name_);
      if (n == 0) break;
      done += static_cast<std::size_t>(n);
    }
    bytes.resize(done);
    return bytes;
  }

 private:
  UniqueFd fd_;
  std::int64_t size_;
  std::string name_;
};

// Folders are plain folders, objects plain files: users may look inside.
std::chrono::system_clock::time_point Modified(const struct stat& info) {
  return std::chrono::system_clock::time_point(std::chrono::seconds(info.st_mtim.tv_sec) +
                                               std::chrono::nanoseconds(info.st_mtim.tv_nsec));
}

class LocalStorage : public Storage {
 public:
  explicit LocalStorage(std::string root) : root_(std::move(root)) {}

  absl::StatusOr<std::string> Read(std::string_view path, std::int64_t max_bytes) override {
    return ReadWhole(*this, path, max_bytes);
  }

  absl::StatusOr<std::unique_ptr<StoredReader>> Open(std::string_view path) override {
    auto full = Full(path);
    if (!full.ok()) return full.status();
    auto fd = OpenRegular(*full);
    if (!fd.ok()) return fd.status();
    struct stat info;
    if (fstat(fd->get(), &info) != 0) return ErrnoStatus(errno, "stat", *full);
    return std::make_unique<LocalReader>(std::move(*fd), info.st_size, *full);
  }

  absl::Status Write(std::string_view path, std::string_view bytes) override {
    auto full = Full(path);
    if (!full.ok()) return full.status();
    auto file = PendingFile::Create(*full);
    if (!file.ok()) return file.status();
    if (auto status = file->Append(bytes); !status.ok()) return status;
    return file->Commit();
  }

  absl::StatusOr<Transferred> Download(std::string_view path, const std::string& local_file,
                                       const TransferCheck& check) override {
    auto full = Full(path);
    if (!full.ok()) return full.status();
    return CopyFile(*full, local_file, check);
  }

  absl::StatusOr<Transferred> Upload(const std::string& local_file, std::string_view path,
                                     const TransferCheck& check) override {
    auto full = Full(path);
    if (!full.ok()) return full.status();
    return CopyFile(local_file, *full, check);
  }

  absl::StatusOr<std::optional<StoredFile>> Stat(std::string_view path) override {
    auto full = Full(path);
    if (!full.ok()) return full.status();
    struct stat info;
    if (lstat(full->c_str(), &info) != 0) {
      if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
      return ErrnoStatus(errno, "stat", *full);
    }
    if (!S_ISREG(info.st_mode)) return std::nullopt;
    return StoredFile{std::string(path), info.st_size, Modified(info)};
  }

  absl::StatusOr<std::vector<StoredFile>> List(std::string_view prefix) override {
    auto files = ListAll(prefix);
    if (!files.ok()) return files;
    std::erase_if(*files, [](const StoredFile& file) {
      const std::size_t name = file.path.rfind('/') + 1;
      return std::string_view(file.path).substr(name).starts_with(kTemporaryPrefix);
    });
    return files;
  }

  absl::StatusOr<std::vector<StoredFile>> ListAll(std::string_view prefix) override {
    auto full = Folder(prefix);
    if (!full.ok()) return full.status();
    std::vector<StoredFile> files;
    std::vector<std::string> folders = {*full};
    while (!folders.empty()) {
      const std::string folder = std::move(folders.back());
      folders.pop_back();
      if (auto status = ListInto(folder, &files, &folders); !status.ok()) return status;
    }
    std::sort(files.begin(), files.end(),
              [](const StoredFile& a, const StoredFile& b) { return a.path < b.path; });
    return files;
  }

  absl::Status Delete(std::string_view path) override {
    auto full = Full(path);
    if (!full.ok()) return full.status();
    if (unlink(full->c_str()) != 0 && errno != ENOENT && errno != ENOTDIR) {
      return ErrnoStatus(errno, "delete", *full);
    }
    return absl::OkStatus();
  }

  absl::Status DeleteTree(std::string_view prefix) override {
    auto full = Folder(prefix);
    if (!full.ok()) return full.status();
    std::error_code error;
    // Who else removes it meanwhile takes files from under this walk, which then ends early.
    do {
      error.clear();
      fs::remove_all(*full, error);
    } while (error == std::errc::no_such_file_or_directory);
    return error ? ErrnoStatus(error.value(), "delete", *full) : absl::OkStatus();
  }

  std::string local_root() const override { return root_; }

 private:
  // Adds the regular files in a folder and the folders in it. What goes while we look is left out.
  absl::Status ListInto(const std::string& folder, std::vector<StoredFile>* files,
                        std::vector<std::string>* folders) const {
    std::error_code error;
    fs::directory_iterator it(folder, error), end;
    for (; !error && it != end; it.increment(error)) {
      struct stat info;
      if (lstat(it->path().c_str(), &info) != 0) continue;
      if (S_ISDIR(info.st_mode)) folders->push_back(it->path().native());
      if (!S_ISREG(info.st_mode)) continue;
      files->push_back(
          {it->path().lexically_relative(root_).generic_string(), info.st_size, Modified(info)});
    }
    if (!error || error == std::errc::no_such_file_or_directory ||
        error == std::errc::not_a_directory) {
      return absl::OkStatus();
    }
    return ErrnoStatus(error.value(), "list", folder);
  }

  absl::StatusOr<std::string> Full(std::string_view path) const {
    if (auto status = CheckRelativePath(path); !status.ok()) return status;
    return root_ + "/" + std::string(path);
  }
  absl::StatusOr<std::string> Folder(std::string_view prefix) const {
    if (prefix.empty()) return root_;
    return Full(prefix);
  }

  std::string root_;
};

}  // namespace

absl::StatusOr<PendingFile> PendingFile::Create(const std::string& path) {
  static std::atomic<std::uint64_t> counter{0};
  const fs::path target(path);
  std::error_code error;
  fs::create_directories(target.parent_path(), error);
  if (error) return ErrnoStatus(error.value(), "create folder", target.parent_path().native());
  const std::string prefix =
      (target.parent_path() / (std::string(kTemporaryPrefix) + std::to_string(getpid()) + "-"))
          .native();
  std::string temporary;
  int fd = -1;
  do {  // in a container the next start has the same number and meets what a crash left
    temporary = prefix + std::to_string(counter++);
    fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (fd < 0 && errno == EEXIST);
  if (fd < 0) return ErrnoStatus(errno, "create", temporary);
  return PendingFile(fd, temporary, path);
}

PendingFile::PendingFile(PendingFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      temporary_(std::exchange(other.temporary_, "")),
      path_(std::move(other.path_)) {}

PendingFile::~PendingFile() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

absl::Status PendingFile::Append(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "write", path_);
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status PendingFile::Commit() {
  if (fsync(fd_) != 0) return ErrnoStatus(errno, "sync", path_);
  if (close(std::exchange(fd_, -1)) != 0) return ErrnoStatus(errno, "close", path_);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return ErrnoStatus(errno, "rename to", path_);
  temporary_.clear();
  return SyncFolder(fs::path(path_).parent_path().native());
}

absl::StatusOr<std::unique_ptr<Storage>> OpenLocalStorage(const std::string& folder) {
  return std::make_unique<LocalStorage>(folder);
}

}  // namespace quantry::storage_internal
