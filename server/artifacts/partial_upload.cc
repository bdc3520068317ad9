#include "server/artifacts/partial_upload.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/file_identity.h"
#include "server/artifacts/file_ops.h"

namespace quantry::server {
namespace {

constexpr size_t kReadBytes = 1 << 20;

absl::Status OffsetError(std::int64_t wanted, std::int64_t got) {
  return MakeError(Reason::kUploadOffset,
                   absl::StrCat("the upload stands at byte ", wanted, ", got offset ", got,
                                "; go on from there or start over at 0"),
                   {{"committed", absl::StrCat(wanted)}});
}

absl::Status Busy(const BlobId& blob) {
  return MakeDetailedError(
      Reason::kResourceLimit,
      absl::StrCat("blob ", blob.sha256, " is being uploaded by another call; try again soon"),
      {.metadata = {{"sha256", blob.sha256}}, .retry_after = std::chrono::seconds(1)});
}

UniqueFd OpenOnce(const std::string& path) {
  return UniqueFd(open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, S_IRUSR | S_IWUSR));
}

// Gives its owner the right to write back, unless an upload has the file: that one may be about
// to give it its name. A shared lock, which a network's file system grants to readers.
absl::Status MakeWritable(const std::string& path, const BlobId& blob) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.ok()) return errno == ENOENT ? absl::OkStatus() : DiskError("open", path, errno);
  if (flock(fd.get(), LOCK_SH | LOCK_NB) != 0 || !IsAt(fd.get(), path)) return Busy(blob);
  if (fchmod(fd.get(), S_IRUSR | S_IWUSR) != 0) return DiskError("chmod", path, errno);
  return absl::OkStatus();
}

// Who finishes an upload takes the right to write away before the file gets its name: a server
// that was killed between the two, or failed, leaves it so.
absl::StatusOr<UniqueFd> OpenToWrite(const std::string& path, const BlobId& blob) {
  UniqueFd fd = OpenOnce(path);
  if (!fd.ok() && errno == EACCES) {
    if (absl::Status status = MakeWritable(path, blob); !status.ok()) return status;
    fd = OpenOnce(path);
  }
  if (!fd.ok()) return DiskError("create", path, errno);
  return fd;
}

absl::Status Over(const BlobId& blob) {
  return MakeError(Reason::kInternal, absl::StrCat("the upload of blob ", blob.sha256, " is over"));
}

}  // namespace

std::int64_t PartialUpload::CommittedBytes(const std::string& path, const BlobId& blob) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return 0;
  return std::min<std::int64_t>(info.st_size, blob.size_bytes);
}

absl::StatusOr<PartialUpload> PartialUpload::Open(const std::string& path, const BlobId& blob,
                                                  std::int64_t offset) {
  auto fd = OpenToWrite(path, blob);
  if (!fd.ok()) return fd.status();
  if (flock(fd->get(), LOCK_EX | LOCK_NB) != 0 || !IsAt(fd->get(), path)) return Busy(blob);
  const std::int64_t committed = CommittedBytes(path, blob);
  if (offset != 0 && offset != committed) return OffsetError(committed, offset);
  PartialUpload upload(blob, path, *std::move(fd));
  if (absl::Status status = upload.Resume(offset); !status.ok()) return status;
  return upload;
}

// Hashes what an earlier call left; leaves the position at its end.
absl::Status PartialUpload::Resume(std::int64_t offset) {
  if (offset == 0) {
    if (ftruncate(fd_.get(), 0) != 0) return DiskError("truncate", path_, errno);
    return absl::OkStatus();
  }
  std::vector<char> buffer(kReadBytes);
  while (committed_ < offset) {
    const ssize_t got = pread(fd_.get(), buffer.data(), buffer.size(), committed_);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return DiskError("read", path_, got == 0 ? EIO : errno);
    hash_.Update(buffer.data(), static_cast<size_t>(got));
    committed_ += got;
  }
  if (lseek(fd_.get(), committed_, SEEK_SET) < 0) return DiskError("seek", path_, errno);
  return absl::OkStatus();
}

absl::Status PartialUpload::Append(std::string_view data) {
  if (over_) return Over(blob_);
  if (static_cast<std::int64_t>(data.size()) > blob_.size_bytes - committed_) {
    return MakeError(Reason::kUploadOffset,
                     absl::StrCat("wanted ", blob_.size_bytes, " bytes in all, got more"),
                     {{"committed", absl::StrCat(committed_)}});
  }
  if (absl::Status status = WriteAll(fd_.get(), data, path_); !status.ok()) {
    // A short write must not be taken for data: back to what is known good.
    if (ftruncate(fd_.get(), committed_) == 0) lseek(fd_.get(), committed_, SEEK_SET);
    return status;
  }
  hash_.Update(data);
  committed_ += static_cast<std::int64_t>(data.size());
  return absl::OkStatus();
}

absl::Status PartialUpload::CheckWhole() {
  if (over_) return Over(blob_);
  if (committed_ != blob_.size_bytes) {
    return MakeError(Reason::kUploadOffset,
                     absl::StrCat("the upload ended after ", committed_, " of ", blob_.size_bytes,
                                  " bytes; go on from there"),
                     {{"committed", absl::StrCat(committed_)}});
  }
  over_ = true;
  const std::string actual = hash_.FinishHex();
  return actual == blob_.sha256 ? absl::OkStatus() : Discard(actual);
}

absl::Status PartialUpload::Discard(const std::string& actual) {
  unlink(path_.c_str());
  return MakeError(Reason::kBlobMismatch,
                   absl::StrCat("wanted content with sha256 ", blob_.sha256, ", got ", actual,
                                "; the upload was discarded, read the file again"),
                   {{"wanted", blob_.sha256}, {"got", actual}});
}

absl::Status PartialUpload::Sync() {
  return fsync(fd_.get()) == 0 ? absl::OkStatus() : DiskError("sync", path_, errno);
}

}  // namespace quantry::server
