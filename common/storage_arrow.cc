#include <arrow/buffer.h>
#include <arrow/filesystem/filesystem.h>
#include <arrow/io/interfaces.h>
#include <arrow/result.h>
#include <arrow/status.h>
#include <arrow/util/io_util.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>

#include "common/digest.h"
#include "common/storage_internal.h"
#include "common/storage_s3.h"

namespace quantry::storage_internal {
namespace {

namespace afs = arrow::fs;

std::atomic<bool> object_store_used{false};

bool Mentions(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(), [&](std::string_view word) {
    return text.find(word) != std::string_view::npos;
  });
}

// What of an error's text says which one it is: of an S3 error its code, "ACCESS_DENIED" or
// "UNKNOWN (HTTP status 404)"; of others all but the path.
std::string TellingPart(std::string_view text, std::string_view path) {
  constexpr std::string_view kS3 = "AWS Error ";
  if (const auto at = text.rfind(kS3); at != std::string_view::npos) {
    const std::string_view code = text.substr(at + kS3.size());
    return std::string(code.substr(0, code.find(" during ")));
  }
  std::string part(text);
  for (auto at = part.find(path); !path.empty() && at != std::string::npos; at = part.find(path)) {
    part.erase(at, path.size());
  }
  return part;
}

// Arrow reports most object store failures as IOError with the store's text.
absl::Status FromArrow(const arrow::Status& status, std::string_view action,
                       std::string_view path) {
  const std::string message =
      std::string(action) + " " + std::string(path) + ": " + status.message();
  if (status.IsInvalid() || status.IsTypeError()) return absl::InvalidArgumentError(message);
  if (status.IsNotImplemented()) return absl::UnimplementedError(message);
  if (status.IsOutOfMemory()) return absl::ResourceExhaustedError(message);
  if (!status.IsIOError()) return absl::InternalError(message);
  if (const int error = arrow::internal::ErrnoFromStatus(status); error != 0) {
    return ErrnoStatus(error, action, path);
  }
  return absl::Status(CodeOfFailure(status.message(), path), message);
}

}  // namespace

absl::StatusCode CodeOfFailure(std::string_view text, std::string_view path) {
  const std::string part = TellingPart(text, path);
  // First: "The access key ID you provided does not exist". "Access Denied" is what S3 says of an
  // object in its answer, a 200, to the deletion of several.
  if (Mentions(part,
               {"ACCESS_DENIED", "AccessDenied", "Access Denied", "FORBIDDEN", "INVALID_ACCESS_KEY",
                "SIGNATURE_DOES_NOT_MATCH", "PERMISSION_DENIED", "HTTP status 403"})) {
    return absl::StatusCode::kPermissionDenied;
  }
  if (Mentions(part, {"NOT_FOUND", "NO_SUCH", "does not exist", "NotFound", "HTTP status 404"})) {
    return absl::StatusCode::kNotFound;
  }
  return absl::StatusCode::kUnavailable;
}

namespace {

std::chrono::system_clock::time_point Modified(const afs::FileInfo& info) {
  return std::chrono::time_point_cast<std::chrono::system_clock::duration>(info.mtime());
}

class ArrowReader : public StoredReader {
 public:
  ArrowReader(std::shared_ptr<arrow::io::RandomAccessFile> file, std::int64_t size,
              std::string name)
      : file_(std::move(file)), size_(size), name_(std::move(name)) {}
  std::int64_t size_bytes() const override { return size_; }
  absl::StatusOr<std::string> ReadAt(std::int64_t offset, std::int64_t length) override {
    if (offset < 0 || length < 0) return absl::OutOfRangeError("negative offset or length");
    length = std::min(length, std::max<std::int64_t>(0, size_ - offset));
    if (length == 0) return std::string();
    auto buffer = file_->ReadAt(offset, length);
    if (!buffer.ok()) return FromArrow(buffer.status(), "read", name_);
    return (*buffer)->ToString();
  }

 private:
  std::shared_ptr<arrow::io::RandomAccessFile> file_;
  std::int64_t size_;
  std::string name_;
};

class ArrowStorage : public Storage {
 public:
  ArrowStorage(std::shared_ptr<afs::FileSystem> fs, std::string base, std::string uri)
      : fs_(std::move(fs)), base_(std::move(base)), uri_(std::move(uri)) {}

  absl::StatusOr<std::string> Read(std::string_view path, std::int64_t max_bytes) override {
    return ReadWhole(*this, path, max_bytes);
  }

  absl::StatusOr<std::unique_ptr<StoredReader>> Open(std::string_view path) override {
    auto info = Info(path);
    if (!info.ok()) return info.status();
    if (!info->IsFile()) return absl::NotFoundError("no object " + info->path());
    auto file = fs_->OpenInputFile(*info);
    if (!file.ok()) return Error(file.status(), "open", info->path());
    return std::make_unique<ArrowReader>(*file, info->size(), info->path());
  }

  absl::Status Write(std::string_view path, std::string_view bytes) override {
    auto full = Full(path);
    if (!full.ok()) return full.status();
    auto stream = fs_->OpenOutputStream(*full);
    if (!stream.ok()) return Error(stream.status(), "create", *full);
    auto status = (*stream)->Write(bytes.data(), static_cast<std::int64_t>(bytes.size()));
    if (status.ok()) status = (*stream)->Close();
    if (!status.ok()) {
      (void)(*stream)->Abort();
      return Error(status, "write", *full);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Transferred> Download(std::string_view path, const std::string& local_file,
                                       const TransferCheck& check) override {
    auto reader = Open(path);
    if (!reader.ok()) return reader.status();
    auto target = PendingFile::Create(local_file);
    if (!target.ok()) return target.status();
    Sha256 hash;
    Transferred done;
    while (done.size_bytes < (*reader)->size_bytes()) {
      auto chunk = (*reader)->ReadAt(done.size_bytes, 8 * kChunkBytes);
      if (!chunk.ok()) return chunk.status();
      if (chunk->empty())
        return absl::DataLossError("object " + std::string(path) + " ended early");
      hash.Update(*chunk);
      if (auto status = target->Append(*chunk); !status.ok()) return status;
      done.size_bytes += static_cast<std::int64_t>(chunk->size());
      if (check) {
        auto status = check(static_cast<std::int64_t>(chunk->size()));
        if (!status.ok()) return status;
      }
    }
    if (auto status = target->Commit(); !status.ok()) return status;
    done.sha256 = hash.FinishHex();
    return done;
  }

  absl::StatusOr<Transferred> Upload(const std::string& local_file, std::string_view path,
                                     const TransferCheck& check) override {
    auto full = Full(path);
    if (!full.ok()) return full.status();
    auto local = OpenLocalStorage(std::filesystem::path(local_file).parent_path().native());
    if (!local.ok()) return local.status();
    auto source = (*local)->Open(std::filesystem::path(local_file).filename().native());
    if (!source.ok()) return source.status();
    auto stream = fs_->OpenOutputStream(*full);
    if (!stream.ok()) return Error(stream.status(), "create", *full);
    auto done = Pump(**source, **stream, *full, check);
    if (!done.ok()) {
      (void)(*stream)->Abort();
      return done.status();
    }
    auto info = Info(path);
    if (!info.ok()) return info.status();
    if (info->size() != done->size_bytes) {
      return absl::DataLossError("uploaded " + std::to_string(done->size_bytes) + " bytes to " +
                                 *full + ", the store has " + std::to_string(info->size()));
    }
    return done;
  }

  absl::StatusOr<std::optional<StoredFile>> Stat(std::string_view path) override {
    auto info = Info(path);
    if (!info.ok()) return info.status();
    if (!info->IsFile()) return std::nullopt;
    return StoredFile{std::string(path), info->size(), Modified(*info)};
  }

  absl::StatusOr<std::vector<StoredFile>> List(std::string_view prefix) override {
    auto folder = Folder(prefix);
    if (!folder.ok()) return folder.status();
    afs::FileSelector selector;
    selector.base_dir = *folder;
    selector.allow_not_found = true;
    selector.recursive = true;
    auto infos = fs_->GetFileInfo(selector);
    if (!infos.ok()) return Error(infos.status(), "list", *folder);
    std::vector<StoredFile> files;
    for (const afs::FileInfo& info : *infos) {
      if (!info.IsFile() || !info.path().starts_with(base_ + "/")) continue;
      files.push_back({info.path().substr(base_.size() + 1), info.size(), Modified(info)});
    }
    std::sort(files.begin(), files.end(),
              [](const StoredFile& a, const StoredFile& b) { return a.path < b.path; });
    return files;
  }

  absl::Status Delete(std::string_view path) override {
    auto found = Stat(path);
    if (!found.ok()) return found.status();
    if (!found->has_value()) return absl::OkStatus();
    const std::string full = *Full(path);
    const auto status = fs_->DeleteFile(full);
    return status.ok() ? absl::OkStatus() : Error(status, "delete", full);
  }

  absl::Status DeleteTree(std::string_view prefix) override {
    auto folder = Folder(prefix);
    if (!folder.ok()) return folder.status();
    auto status = fs_->DeleteDirContents(*folder, /*missing_dir_ok=*/true);
    if (!status.ok()) return Error(status, "delete", *folder);
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::string> Full(std::string_view path) const {
    if (auto status = CheckRelativePath(path); !status.ok()) return status;
    return base_ + "/" + std::string(path);
  }
  absl::StatusOr<std::string> Folder(std::string_view prefix) const {
    if (prefix.empty()) return base_;
    return Full(prefix);
  }
  absl::StatusOr<afs::FileInfo> Info(std::string_view path) {
    auto full = Full(path);
    if (!full.ok()) return full.status();
    auto info = fs_->GetFileInfo(*full);
    if (!info.ok()) return Error(info.status(), "look up", *full);
    return *info;
  }

  absl::StatusOr<Transferred> Pump(StoredReader& source, arrow::io::OutputStream& stream,
                                   const std::string& name, const TransferCheck& check) {
    Sha256 hash;
    Transferred done;
    while (done.size_bytes < source.size_bytes()) {
      auto chunk = source.ReadAt(done.size_bytes, kChunkBytes);
      if (!chunk.ok()) return chunk.status();
      if (chunk->empty()) return absl::DataLossError("the file became shorter during upload");
      const auto size = static_cast<std::int64_t>(chunk->size());
      hash.Update(*chunk);
      if (auto status = stream.Write(chunk->data(), size); !status.ok()) {
        return Error(status, "write", name);
      }
      done.size_bytes += size;
      if (check) {
        if (auto status = check(size); !status.ok()) return status;
      }
    }
    if (auto status = stream.Close(); !status.ok()) return Error(status, "write", name);
    done.sha256 = hash.FinishHex();
    return done;
  }

  absl::Status Error(const arrow::Status& status, std::string_view action,
                     std::string_view path) const {
    const absl::Status told = FromArrow(status, action, path);
    return absl::Status(told.code(),
                        std::string(told.message()) + OtherRegionHint(uri_, status.message()));
  }

  std::shared_ptr<afs::FileSystem> fs_;
  std::string base_;  // bucket/prefix, no trailing slash
  const std::string uri_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Storage>> OpenArrowStorage(std::string_view uri) {
  object_store_used = true;
  std::string base;
  auto fs = uri.starts_with("s3://") ? OpenS3(uri, &base)
                                     : afs::FileSystemFromUri(std::string(uri), &base);
  if (!fs.ok()) return FromArrow(fs.status(), "open storage", uri);
  while (base.ends_with('/')) base.pop_back();
  if (base.empty()) {
    return absl::InvalidArgumentError("storage URI \"" + std::string(uri) + "\" names no bucket");
  }
  return std::make_unique<ArrowStorage>(*fs, base, std::string(uri));
}

void FinalizeArrow() {
  if (object_store_used.exchange(false)) afs::EnsureFinalized();
}

}  // namespace quantry::storage_internal
