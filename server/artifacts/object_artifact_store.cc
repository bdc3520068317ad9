#include "server/artifacts/object_artifact_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/storage.h"
#include "server/artifacts/object_root.h"

namespace quantry::server {
namespace {

// One request of this size feeds many chunks of a stream: object stores answer
// slowly but send fast. Bounds the memory of a stream.
constexpr std::int64_t kReadAheadBytes = 8 << 20;

// Reads ahead while the reads follow each other.
class ObjectReader : public ArtifactReader {
 public:
  ObjectReader(std::unique_ptr<StoredReader> object, std::string name)
      : object_(std::move(object)), name_(std::move(name)) {}

  std::int64_t size_bytes() const override { return object_->size_bytes(); }

  absl::StatusOr<std::string> ReadAt(std::int64_t offset, std::int64_t length) override {
    length = std::min(length, std::max<std::int64_t>(0, size_bytes() - offset));
    if (length <= 0) return std::string();
    if (offset < begin_ || offset + length > begin_ + Buffered()) {
      const std::int64_t ahead = offset == next_ ? std::max(length, kReadAheadBytes) : length;
      auto data = object_->ReadAt(offset, ahead);
      if (!data.ok()) return ObjectError(data.status(), name_);
      begin_ = offset;
      buffer_ = *std::move(data);
    }
    next_ = offset + length;
    return buffer_.substr(static_cast<size_t>(offset - begin_), static_cast<size_t>(length));
  }

 private:
  std::int64_t Buffered() const { return static_cast<std::int64_t>(buffer_.size()); }

  const std::unique_ptr<StoredReader> object_;
  const std::string name_;
  std::string buffer_;      // bytes from begin_ on
  std::int64_t begin_ = 0;  // offset of the buffer's first byte
  std::int64_t next_ = -1;  // where the last read ended; -1: no read yet
};

class ObjectArtifactStore : public ArtifactStore {
 public:
  ObjectArtifactStore(std::string root_uri, std::unique_ptr<Storage> storage)
      : root_uri_(std::move(root_uri)), storage_(std::move(storage)) {}

  std::string RootUri() const override { return root_uri_; }

  std::string OutputUri(std::string_view tenant, std::string_view job_uid,
                        std::int64_t epoch) const override {
    return JoinUri(root_uri_, absl::StrCat(JobFolder(tenant, job_uid), "/", epoch));
  }

  std::string CheckpointUri(std::string_view tenant, std::string_view job_uid,
                            std::int64_t epoch) const override {
    return JoinUri(root_uri_, absl::StrCat(JobFolder(tenant, job_uid), "/checkpoints/", epoch));
  }

  absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(std::string_view uri,
                                                       std::string_view path) override {
    auto folder = BelowRoot(uri);
    if (!folder.ok()) return folder.status();
    // Each on its own: "..", absolute names and the like are refused.
    for (const std::string_view part : {std::string_view(*folder), path}) {
      if (auto status = CheckRelativePath(part); !status.ok()) return ObjectError(status, part);
    }
    const std::string name = absl::StrCat(*folder, "/", std::string(path));
    auto object = storage_->Open(name);
    if (!object.ok()) return ObjectError(object.status(), path);
    return std::make_unique<ObjectReader>(*std::move(object), std::string(path));
  }

  absl::Status DeleteJob(std::string_view tenant, std::string_view job_uid) override {
    if (auto status = CheckJob(tenant, job_uid); !status.ok()) return status;
    const std::string folder = JobFolder(tenant, job_uid);
    auto status = storage_->DeleteTree(folder);
    if (absl::IsPermissionDenied(status)) {
      return MakeError(Reason::kPermissionDenied, std::string(status.message()),
                       {{"path", folder}});
    }
    return status.ok() ? status : ObjectError(status, folder);
  }

 private:
  static std::string JobFolder(std::string_view tenant, std::string_view job_uid) {
    return absl::StrCat(std::string(tenant), "/", std::string(job_uid));
  }

  // The part of a URI of ours below the root.
  absl::StatusOr<std::string> BelowRoot(std::string_view uri) const {
    const size_t query = std::min(root_uri_.find('?'), root_uri_.size());
    const std::string prefix = absl::StrCat(root_uri_.substr(0, query), "/");
    const std::string_view options = std::string_view(root_uri_).substr(query);
    if (uri.size() > prefix.size() + options.size() && uri.starts_with(prefix) &&
        uri.ends_with(options)) {
      const std::string_view below =
          uri.substr(prefix.size(), uri.size() - prefix.size() - options.size());
      if (below.find('?') == std::string_view::npos) return std::string(below);
    }
    return MakeError(Reason::kPermissionDenied,
                     absl::StrCat("wanted an artifact below ", prefix, ", got ",
                                  std::string(uri.substr(0, 500))));
  }

  const std::string root_uri_;  // no slash before its query
  const std::unique_ptr<Storage> storage_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenObjectArtifactStore(
    const std::string& root_uri) {
  auto root = OpenObjectRoot("artifact_root", root_uri);
  if (!root.ok()) return root.status();
  return std::make_unique<ObjectArtifactStore>(root->uri, std::move(root->storage));
}

}  // namespace quantry::server
