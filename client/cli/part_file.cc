#include "client/cli/part_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "client/cli/errors.h"
#include "client/cli/text.h"

namespace quantry::cli {
namespace {

constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kNameDigits = 16;

absl::Status WriteError(const std::string& path, int error) {
  absl::Status status =
      absl::FailedPreconditionError(Cat("cannot write \"", path, "\": ", std::strerror(error)));
  if (error == ENOSPC || error == EDQUOT) {
    return WithNext(std::move(status),
                    "make room and run the same pull again: it goes on from here");
  }
  return WithNext(std::move(status), "choose a folder you may write to");
}

absl::Status SyncFolder(const std::string& folder) {
  const UniqueFd fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.ok() || fsync(fd.get()) != 0) return WriteError(folder, errno);
  return absl::OkStatus();
}

}  // namespace

PartFile::PartFile(std::string target, std::string sha256, std::string part, UniqueFd fd)
    : target_(std::move(target)),
      sha256_(std::move(sha256)),
      part_(std::move(part)),
      fd_(std::move(fd)) {}

absl::StatusOr<PartFile> PartFile::Open(const std::string& target, const std::string& sha256) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(target).parent_path();
  std::filesystem::create_directories(folder, error);
  if (error) return WriteError(folder.string(), error.value());
  std::string part = Cat(target, ".", sha256.substr(0, kNameDigits), ".part");
  UniqueFd fd(open(part.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!fd.ok()) return WriteError(part, errno);
  PartFile file(target, sha256, std::move(part), std::move(fd));
  if (absl::Status status = file.Adopt(); !status.ok()) return status;
  return file;
}

absl::Status PartFile::Adopt() {
  std::string buffer(kReadBytes, '\0');
  while (true) {
    const ssize_t got = read(fd_.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return WriteError(part_, errno);
    if (got == 0) return absl::OkStatus();
    hash_.Update(std::string_view(buffer.data(), static_cast<size_t>(got)));
    size_ += got;
  }
}

absl::Status PartFile::Append(std::string_view data) {
  hash_.Update(data);
  size_ += static_cast<int64_t>(data.size());
  while (!data.empty()) {
    const ssize_t put = write(fd_.get(), data.data(), data.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return WriteError(part_, errno);
    data.remove_prefix(static_cast<size_t>(put));
  }
  return absl::OkStatus();
}

absl::Status PartFile::Reset() {
  if (ftruncate(fd_.get(), 0) != 0 || lseek(fd_.get(), 0, SEEK_SET) != 0) {
    return WriteError(part_, errno);
  }
  hash_ = Sha256();
  size_ = 0;
  return absl::OkStatus();
}

bool PartFile::Matches(int64_t size_bytes) {
  return size_ == size_bytes && hash_.FinishHex() == sha256_;
}

absl::Status PartFile::Commit() {
  if (fsync(fd_.get()) != 0) return WriteError(part_, errno);
  if (rename(part_.c_str(), target_.c_str()) != 0) return WriteError(target_, errno);
  return SyncFolder(std::filesystem::path(target_).parent_path().string());
}

void PartFile::Discard() { (void)unlink(part_.c_str()); }

}  // namespace quantry::cli
