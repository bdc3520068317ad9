#include "client/cli/part_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "client/cli/errors.h"
#include "client/cli/hold.h"
#include "client/cli/text.h"

namespace quantry::cli {
namespace {

constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kNameDigits = 16;
constexpr char kSuffix[] = ".part";

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

// "{16 hex digits}.part"
bool IsPartSuffix(const std::string& text) {
  return text.size() == kNameDigits + sizeof(kSuffix) - 1 && text.substr(kNameDigits) == kSuffix &&
         text.find_first_not_of("0123456789abcdef") == kNameDigits;
}

}  // namespace

PartFile::PartFile(std::string target, std::string sha256, std::string part)
    : target_(std::move(target)), sha256_(std::move(sha256)), part_(std::move(part)) {}

absl::StatusOr<PartFile> PartFile::Open(const std::string& target, const std::string& sha256) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(target).parent_path();
  std::filesystem::create_directories(folder, error);
  if (error) return WriteError(folder.string(), error.value());
  PartFile file(target, sha256, Cat(target, ".", sha256.substr(0, kNameDigits), kSuffix));
  if (absl::Status status = file.Hold(); !status.ok()) return status;
  if (absl::Status status = file.Adopt(); !status.ok()) return status;
  return file;
}

// A file that its last holder renamed while we opened it is not ours to write:
// it has its final name.
absl::Status PartFile::Hold() {
  const auto open_part = [this] {
    return open(part_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  };
  switch (OpenAndHold(part_, open_part, &fd_)) {
    case Holder::kUs:
      return absl::OkStatus();
    case Holder::kNobody:
      return WriteError(part_, errno);
    case Holder::kOther:
      break;
  }
  return WithNext(
      absl::FailedPreconditionError(Cat("another command is writing \"", part_, "\" now")),
      "wait for its end, then run the same command again");
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

absl::Status PartFile::Sync() {
  return fsync(fd_.get()) == 0 ? absl::OkStatus() : WriteError(part_, errno);
}

absl::Status PartFile::Commit() {
  if (absl::Status status = Sync(); !status.ok()) return status;
  if (rename(part_.c_str(), target_.c_str()) != 0) return WriteError(target_, errno);
  return SyncFolder(std::filesystem::path(target_).parent_path().string());
}

void PartFile::Discard() { (void)unlink(part_.c_str()); }

absl::Status RemoveAndSync(const std::string& path) {
  if (unlink(path.c_str()) != 0) {
    return errno == ENOENT ? absl::OkStatus() : WriteError(path, errno);
  }
  return SyncFolder(std::filesystem::path(path).parent_path().string());
}

absl::Status RenameAndSync(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) {
    return errno == ENOENT ? absl::OkStatus() : WriteError(from, errno);
  }
  return SyncFolder(std::filesystem::path(to).parent_path().string());
}

void RemoveOldParts(const std::string& target) {
  const std::filesystem::path path(target);
  const std::string prefix = path.filename().string() + ".";
  std::error_code error;
  std::filesystem::directory_iterator entry(path.parent_path(), error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename();
    if (name.rfind(prefix, 0) != 0 || !IsPartSuffix(name.substr(prefix.size()))) continue;
    std::error_code ignored;
    std::filesystem::remove(entry->path(), ignored);
  }
}

}  // namespace quantry::cli
