#include "server/artifacts/local_blob_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/unique_fd.h"
#include "server/artifacts/file_ops.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;

constexpr size_t kReadBytes = 1 << 20;

absl::Status OffsetError(std::int64_t wanted, std::int64_t got) {
  return MakeError(Reason::kUploadOffset,
                   absl::StrCat("the upload stands at byte ", wanted, ", got offset ", got,
                                "; go on from there or start over at 0"),
                   {{"committed", absl::StrCat(wanted)}});
}

struct BlobPaths {
  std::string folder;   // of the finished blob
  std::string final;    // finished
  std::string partial;  // in progress
};

class LocalUpload : public BlobUpload {
 public:
  LocalUpload(BlobId blob, BlobPaths paths, UniqueFd fd)
      : blob_(std::move(blob)), paths_(std::move(paths)), fd_(std::move(fd)) {}

  ~LocalUpload() override {
    if (!finished_) fdatasync(fd_.get());
  }

  // Hashes what an earlier call left; leaves the position at its end.
  absl::Status Resume(std::int64_t offset) {
    if (offset == 0) {
      if (ftruncate(fd_.get(), 0) != 0) return DiskError("truncate", paths_.partial, errno);
      return absl::OkStatus();
    }
    std::vector<char> buffer(kReadBytes);
    while (committed_ < offset) {
      const ssize_t got = pread(fd_.get(), buffer.data(), buffer.size(), committed_);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return DiskError("read", paths_.partial, got == 0 ? EIO : errno);
      hash_.Update(buffer.data(), static_cast<size_t>(got));
      committed_ += got;
    }
    if (lseek(fd_.get(), committed_, SEEK_SET) < 0) return DiskError("seek", paths_.partial, errno);
    return absl::OkStatus();
  }

  std::int64_t committed_bytes() const override { return committed_; }

  absl::Status Append(std::string_view data) override {
    if (static_cast<std::int64_t>(data.size()) > blob_.size_bytes - committed_) {
      return MakeError(Reason::kUploadOffset,
                       absl::StrCat("wanted ", blob_.size_bytes, " bytes in all, got more"),
                       {{"committed", absl::StrCat(committed_)}});
    }
    if (absl::Status status = WriteAll(fd_.get(), data, paths_.partial); !status.ok()) {
      // A short write must not be taken for data: back to what is known good.
      if (ftruncate(fd_.get(), committed_) == 0) lseek(fd_.get(), committed_, SEEK_SET);
      return status;
    }
    hash_.Update(data);
    committed_ += static_cast<std::int64_t>(data.size());
    return absl::OkStatus();
  }

  absl::Status Finish() override {
    if (committed_ != blob_.size_bytes) {
      return MakeError(Reason::kUploadOffset,
                       absl::StrCat("the upload ended after ", committed_, " of ", blob_.size_bytes,
                                    " bytes; go on from there"),
                       {{"committed", absl::StrCat(committed_)}});
    }
    const std::string actual = hash_.FinishHex();
    if (actual != blob_.sha256) {
      unlink(paths_.partial.c_str());
      return MakeError(Reason::kBlobMismatch,
                       absl::StrCat("wanted content with sha256 ", blob_.sha256, ", got ", actual,
                                    "; the upload was discarded, read the file again"),
                       {{"wanted", blob_.sha256}, {"got", actual}});
    }
    fchmod(fd_.get(), S_IRUSR | S_IRGRP);
    if (fsync(fd_.get()) != 0) return DiskError("sync", paths_.partial, errno);
    if (std::rename(paths_.partial.c_str(), paths_.final.c_str()) != 0) {
      return DiskError("rename", paths_.final, errno);
    }
    finished_ = true;
    return SyncFolder(paths_.folder);
  }

 private:
  BlobId blob_;
  BlobPaths paths_;
  UniqueFd fd_;
  Sha256 hash_;
  std::int64_t committed_ = 0;
  bool finished_ = false;
};

class LocalBlobStore : public BlobStore {
 public:
  explicit LocalBlobStore(std::string root) : root_(std::move(root)) {}

  absl::StatusOr<BlobState> Find(std::string_view tenant, const BlobId& blob) override {
    auto paths = PathsOf(tenant, blob);
    if (!paths.ok()) return paths.status();
    struct stat info {};
    if (stat(paths->final.c_str(), &info) == 0 && info.st_size == blob.size_bytes) {
      utimensat(AT_FDCWD, paths->final.c_str(), nullptr, 0);
      return BlobState{.complete = true, .committed_bytes = blob.size_bytes};
    }
    if (stat(paths->partial.c_str(), &info) != 0) return BlobState{};
    return BlobState{.committed_bytes = std::min<std::int64_t>(info.st_size, blob.size_bytes)};
  }

  absl::StatusOr<std::unique_ptr<BlobUpload>> Begin(std::string_view tenant, const BlobId& blob,
                                                    std::int64_t offset) override {
    auto paths = PathsOf(tenant, blob);
    if (!paths.ok()) return paths.status();
    absl::Status made = MakeFolders(paths->folder + "/.partial");
    if (!made.ok()) return made;
    UniqueFd fd(
        open(paths->partial.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, S_IRUSR | S_IWUSR));
    if (!fd.ok()) return DiskError("create", paths->partial, errno);
    if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      return MakeDetailedError(
          Reason::kResourceLimit,
          absl::StrCat("blob ", blob.sha256, " is being uploaded by another call; try again soon"),
          {.metadata = {{"sha256", blob.sha256}}, .retry_after = std::chrono::seconds(1)});
    }
    struct stat info {};
    if (fstat(fd.get(), &info) != 0) return DiskError("stat", paths->partial, errno);
    const std::int64_t committed = std::min<std::int64_t>(info.st_size, blob.size_bytes);
    if (offset != 0 && offset != committed) return OffsetError(committed, offset);
    auto upload = std::make_unique<LocalUpload>(blob, *std::move(paths), std::move(fd));
    if (absl::Status status = upload->Resume(offset); !status.ok()) return status;
    return upload;
  }

  absl::StatusOr<std::int64_t> StoredBytes(std::string_view tenant) override {
    if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
    const fs::path folder = fs::path(root_) / std::string(tenant);
    std::int64_t bytes = 0;
    for (const fs::path& part : {folder, folder / ".partial"}) {
      std::error_code error;
      for (fs::directory_iterator entry(part, error), end; !error && entry != end;
           entry.increment(error)) {
        std::error_code gone;  // finished or collected meanwhile
        const bool file = entry->is_regular_file(gone);
        const std::uintmax_t size = file ? entry->file_size(gone) : 0;
        if (!gone) bytes += static_cast<std::int64_t>(size);
      }
      if (error && error != std::errc::no_such_file_or_directory) {
        return DiskError("list", part.string(), error.value());
      }
    }
    return bytes;
  }

  std::string Uri(std::string_view tenant) const override {
    return absl::StrCat("file://", root_, "/", std::string(tenant));
  }

  std::string RootUri() const override { return absl::StrCat("file://", root_); }

  std::string LocalPath(std::string_view tenant, std::string_view sha256) const override {
    return absl::StrCat(root_, "/", std::string(tenant), "/", std::string(sha256));
  }

 private:
  absl::StatusOr<BlobPaths> PathsOf(std::string_view tenant, const BlobId& blob) const {
    if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
    if (!IsSha256Hex(blob.sha256) || blob.size_bytes < 0) {
      return MakeError(Reason::kInvalidArgument,
                       "wanted a blob with 64 lower-case hex digits and a size of 0 or more");
    }
    BlobPaths paths;
    paths.folder = absl::StrCat(root_, "/", std::string(tenant));
    paths.final = absl::StrCat(paths.folder, "/", blob.sha256);
    paths.partial = absl::StrCat(paths.folder, "/.partial/", blob.sha256);
    return paths;
  }

  std::string root_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlobStore>> OpenLocalBlobStore(const std::string& root) {
  if (absl::Status status = MakeFolders(root); !status.ok()) return status;
  return std::make_unique<LocalBlobStore>(root);
}

}  // namespace quantry::server
