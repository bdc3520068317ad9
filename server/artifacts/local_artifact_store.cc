#include "server/artifacts/local_artifact_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/confined.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/unique_fd.h"
#include "server/artifacts/file_ops.h"

namespace quantry::server {
namespace {

constexpr std::string_view kScheme = "file://";

class LocalReader : public ArtifactReader {
 public:
  LocalReader(UniqueFd fd, std::int64_t size_bytes, std::string path)
      : fd_(std::move(fd)), size_bytes_(size_bytes), path_(std::move(path)) {}

  std::int64_t size_bytes() const override { return size_bytes_; }

  absl::StatusOr<std::string> ReadAt(std::int64_t offset, std::int64_t length) override {
    const std::int64_t left = std::max<std::int64_t>(size_bytes_ - offset, 0);
    std::string data(static_cast<size_t>(std::min(length, left)), '\0');
    size_t done = 0;
    while (done < data.size()) {
      const ssize_t got = pread(fd_.get(), data.data() + done, data.size() - done,
                                offset + static_cast<std::int64_t>(done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return DiskError("read", path_, errno);
      if (got == 0) break;  // it shrank: the caller's hash or size check finds it
      done += static_cast<size_t>(got);
    }
    data.resize(done);
    return data;
  }

 private:
  UniqueFd fd_;
  std::int64_t size_bytes_;
  std::string path_;
};

class LocalArtifactStore : public ArtifactStore {
 public:
  LocalArtifactStore(std::string root, UniqueFd root_fd)
      : root_(std::move(root)), root_fd_(std::move(root_fd)) {}

  std::string RootUri() const override { return absl::StrCat(std::string(kScheme), root_); }

  std::string OutputUri(std::string_view tenant, std::string_view job_uid,
                        std::int64_t epoch) const override {
    return absl::StrCat(JobUri(tenant, job_uid), "/", epoch);
  }

  std::string CheckpointUri(std::string_view tenant, std::string_view job_uid,
                            std::int64_t epoch) const override {
    return absl::StrCat(JobUri(tenant, job_uid), "/checkpoints/", epoch);
  }

  absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(std::string_view uri,
                                                       std::string_view path) override {
    const std::string prefix = absl::StrCat(std::string(kScheme), root_, "/");
    if (uri.size() <= prefix.size() || uri.substr(0, prefix.size()) != prefix) {
      return MakeError(Reason::kPermissionDenied,
                       absl::StrCat("wanted an artifact below ", prefix, ", got ",
                                    std::string(uri.substr(0, 500))));
    }
    auto folder = OpenBeneath(root_fd_.get(), uri.substr(prefix.size()), O_PATH | O_DIRECTORY,
                              Symlinks::kRefuse);
    if (!folder.ok()) return Explain(folder.status(), uri);
    auto fd = OpenBeneath(folder->get(), path, O_RDONLY | O_NONBLOCK, Symlinks::kRefuse);
    if (!fd.ok()) return Explain(fd.status(), path);
    struct stat info {};
    if (fstat(fd->get(), &info) != 0) return DiskError("stat", path, errno);
    if (!S_ISREG(info.st_mode)) {
      return MakeError(Reason::kArtifactNotFound,
                       absl::StrCat("'", std::string(path), "' is not a file of the artifact"));
    }
    return std::make_unique<LocalReader>(*std::move(fd), info.st_size, std::string(path));
  }

  absl::Status DeleteJob(std::string_view tenant, std::string_view job_uid) override {
    if (absl::Status status = CheckJob(tenant, job_uid); !status.ok()) return status;
    std::error_code error;
    const std::string folder =
        absl::StrCat(root_, "/", std::string(tenant), "/", std::string(job_uid));
    std::filesystem::remove_all(folder, error);  // links are removed, not followed
    if (error) return DiskError("remove", folder, error.value());
    return absl::OkStatus();
  }

 private:
  std::string JobUri(std::string_view tenant, std::string_view job_uid) const {
    return absl::StrCat(std::string(kScheme), root_, "/", std::string(tenant), "/",
                        std::string(job_uid));
  }

  static absl::Status Explain(const absl::Status& status, std::string_view name) {
    const std::map<std::string, std::string> metadata = {{"path", std::string(name)}};
    switch (status.code()) {
      case absl::StatusCode::kNotFound:
        return MakeError(Reason::kArtifactNotFound, std::string(status.message()), metadata);
      case absl::StatusCode::kInvalidArgument:
        return MakeError(Reason::kInvalidArgument, std::string(status.message()), metadata);
      case absl::StatusCode::kPermissionDenied:
        return MakeError(Reason::kPermissionDenied, std::string(status.message()), metadata);
      default:
        return MakeError(Reason::kStorageError, std::string(status.message()), metadata);
    }
  }

  std::string root_;
  UniqueFd root_fd_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenLocalArtifactStore(const std::string& root_uri) {
  if (root_uri.rfind("file:///", 0) != 0 || root_uri.find('%') != std::string::npos) {
    return MakeError(Reason::kInvalidConfig,
                     absl::StrCat("artifact_root: wanted file:///absolute/folder without "
                                  "%-escapes, or a URI like s3://bucket/prefix; got ",
                                  root_uri));
  }
  std::string root = root_uri.substr(kScheme.size());
  while (root.size() > 1 && root.back() == '/') root.pop_back();
  if (absl::Status status = MakeFolders(root); !status.ok()) return status;
  auto fd = OpenFolder(root);
  if (!fd.ok()) return MakeError(Reason::kInvalidConfig, std::string(fd.status().message()));
  return std::make_unique<LocalArtifactStore>(root, *std::move(fd));
}

}  // namespace quantry::server
