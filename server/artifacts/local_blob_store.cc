#include "server/artifacts/local_blob_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/storage.h"
#include "server/artifacts/file_ops.h"
#include "server/artifacts/partial_upload.h"

namespace quantry::server {
namespace {

struct BlobPaths {
  std::string folder;   // of the finished blob
  std::string final;    // finished
  std::string partial;  // in progress
};

class LocalUpload : public BlobUpload {
 public:
  LocalUpload(PartialUpload partial, BlobPaths paths)
      : partial_(std::move(partial)), paths_(std::move(paths)) {}
  ~LocalUpload() override {
    if (!finished_) partial_.Sync().IgnoreError();  // as far as possible
  }

  std::int64_t committed_bytes() const override { return partial_.committed_bytes(); }
  absl::Status Append(std::string_view data) override { return partial_.Append(data); }

  // A rename: there is nothing to stop.
  absl::Status Finish(const TransferCheck&) override {
    if (absl::Status status = partial_.CheckWhole(); !status.ok()) return status;
    chmod(paths_.partial.c_str(), S_IRUSR | S_IRGRP);
    if (absl::Status status = partial_.Sync(); !status.ok()) return status;
    if (std::rename(paths_.partial.c_str(), paths_.final.c_str()) != 0) {
      return DiskError("rename", paths_.final, errno);
    }
    finished_ = true;
    return SyncFolder(paths_.folder);
  }

 private:
  PartialUpload partial_;
  BlobPaths paths_;
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
    return BlobState{.committed_bytes = PartialUpload::CommittedBytes(paths->partial, blob)};
  }

  absl::StatusOr<std::unique_ptr<BlobUpload>> Begin(std::string_view tenant, const BlobId& blob,
                                                    std::int64_t offset) override {
    auto paths = PathsOf(tenant, blob);
    if (!paths.ok()) return paths.status();
    absl::Status made = MakeFolders(absl::StrCat(paths->folder, "/", std::string(kPartialFolder)));
    if (!made.ok()) return made;
    auto partial = PartialUpload::Open(paths->partial, blob, offset);
    if (!partial.ok()) return partial.status();
    return std::make_unique<LocalUpload>(*std::move(partial), *std::move(paths));
  }

  absl::StatusOr<std::int64_t> StoredBytes(std::string_view tenant) override {
    if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
    const std::string folder = FolderOf(tenant);
    const auto finished = BytesInFolder(folder);
    if (!finished.ok()) return finished.status();
    const auto begun = BytesInFolder(absl::StrCat(folder, "/", std::string(kPartialFolder)));
    if (!begun.ok()) return begun.status();
    return *finished + *begun;
  }

  std::string Uri(std::string_view tenant) const override {
    return UriFromLocalPath(FolderOf(tenant));
  }
  std::string RootUri() const override { return UriFromLocalPath(root_); }
  std::string SpoolUri() const override { return ""; }

  absl::StatusOr<std::int64_t> Place(std::string_view tenant, const BlobId& blob, BlobPart,
                                     std::int64_t, const std::string& path) override {
    auto paths = PathsOf(tenant, blob);
    if (!paths.ok()) return paths.status();
    if (access(paths->final.c_str(), F_OK) != 0) {
      return absl::NotFoundError(absl::StrCat("no blob ", blob.sha256));
    }
    if (symlink(paths->final.c_str(), path.c_str()) != 0) return DiskError("link", path, errno);
    return 0;
  }

 private:
  std::string FolderOf(std::string_view tenant) const {
    return absl::StrCat(root_, "/", std::string(tenant));
  }

  absl::StatusOr<BlobPaths> PathsOf(std::string_view tenant, const BlobId& blob) const {
    if (absl::Status status = CheckBlobId(tenant, blob); !status.ok()) return status;
    BlobPaths paths;
    paths.folder = FolderOf(tenant);
    paths.final = absl::StrCat(paths.folder, "/", blob.sha256);
    paths.partial = absl::StrCat(paths.folder, "/", std::string(kPartialFolder), "/", blob.sha256);
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
