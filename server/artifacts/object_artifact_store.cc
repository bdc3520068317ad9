#include "server/artifacts/object_artifact_store.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/storage.h"

namespace quantry::server {
namespace {

// One request of this size feeds many chunks of a stream: object stores answer
// slowly but send fast. Bounds the memory of a stream.
constexpr std::int64_t kReadAheadBytes = 8 << 20;

absl::Status Explain(const absl::Status& status, std::string_view name) {
  const std::map<std::string, std::string> metadata = {{"path", std::string(name)}};
  const std::string message(status.message());
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return MakeError(Reason::kArtifactNotFound, message, metadata);
    case absl::StatusCode::kInvalidArgument:
      return MakeError(Reason::kInvalidArgument, message, metadata);
    default:
      return MakeError(Reason::kStorageError, message, metadata);
  }
}

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
      if (!data.ok()) return Explain(data.status(), name_);
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
      if (auto status = CheckRelativePath(part); !status.ok()) return Explain(status, part);
    }
    const std::string name = absl::StrCat(*folder, "/", std::string(path));
    auto object = storage_->Open(name);
    if (!object.ok()) return Explain(object.status(), path);
    return std::make_unique<ObjectReader>(*std::move(object), std::string(path));
  }

  absl::Status DeleteJob(std::string_view tenant, std::string_view job_uid) override {
    if (auto status = CheckJob(tenant, job_uid); !status.ok()) return status;
    const std::string folder = JobFolder(tenant, job_uid);
    auto status = storage_->DeleteTree(folder);
    return status.ok() ? status : Explain(status, folder);
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

absl::Status BadRoot(const std::string& root_uri, std::string_view why) {
  return MakeError(Reason::kInvalidConfig,
                   absl::StrCat("artifact_root ", root_uri, ": ", std::string(why)));
}

// "s3://bucket/prefix/?a=b" -> "s3://bucket/prefix?a=b"
std::string WithoutSlash(const std::string& uri) {
  size_t end = std::min(uri.find('?'), uri.size());
  const std::string options = uri.substr(end);
  while (end > 0 && uri[end - 1] == '/') --end;
  return uri.substr(0, end) + options;
}

bool HoldsCredentials(const std::string& uri) {
  const size_t begin = uri.find("://") + 3;
  const size_t end = uri.find_first_of("/?", begin);
  return uri.substr(begin, end == std::string::npos ? end : end - begin).find('@') !=
             std::string::npos ||
         uri.find("secret") != std::string::npos || uri.find("session_token") != std::string::npos;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenObjectArtifactStore(
    const std::string& root_uri) {
  if (root_uri.find("://") == std::string::npos || root_uri.find('%') != std::string::npos) {
    return BadRoot(root_uri, "wanted a URI like s3://bucket/prefix without %-escapes");
  }
  if (HoldsCredentials(root_uri)) {
    return MakeError(
        Reason::kInvalidConfig,
        "artifact_root holds credentials, which every worker and client would see; "
        "give them by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...)");
  }
  const std::string root = WithoutSlash(root_uri);
  auto storage = OpenStorage(root);
  if (!storage.ok()) return BadRoot(root_uri, std::string(storage.status().message()));
  // A wrong endpoint, bucket or key is told now, not by the first job. Reading
  // alone would not tell: a bucket that is absent looks like an empty one.
  constexpr std::string_view kProbe = "quantry-probe";
  absl::Status probe = (*storage)->Write(kProbe, "written and removed at the start");
  if (probe.ok()) probe = (*storage)->Delete(kProbe);
  if (!probe.ok()) {
    return BadRoot(root_uri, absl::StrCat("the store does not answer as it should: ",
                                          std::string(probe.message())));
  }
  return std::make_unique<ObjectArtifactStore>(root, *std::move(storage));
}

}  // namespace quantry::server
