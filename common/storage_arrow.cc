#include <arrow/filesystem/filesystem.h>
#include <arrow/io/interfaces.h>
#include <arrow/result.h>
#include <arrow/status.h>
#include <arrow/util/io_util.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <iterator>
#include <thread>

#include "common/digest.h"
#include "common/ids.h"
#include "common/storage_arrow.h"
#include "common/storage_azure.h"
#include "common/storage_gcs.h"
#include "common/storage_internal.h"
#include "common/storage_repeat.h"
#include "common/storage_s3.h"

namespace quantry::storage_internal {
namespace {

namespace afs = arrow::fs;

std::atomic<bool> object_store_used{false};

enum class Store { kS3, kGoogle, kAzure };

// Of an object on its way to S3, held in memory at once.
constexpr std::int64_t kMostQueuedBytes = std::int64_t{64} << 20;
// S3 takes so many parts of an object, and Arrow's are of one size.
constexpr std::int64_t kMostS3Bytes = 10'000 * (std::int64_t{10} << 20);

Store StoreOf(std::string_view uri) {
  if (uri.starts_with("s3:")) return Store::kS3;
  return uri.starts_with("g") ? Store::kGoogle : Store::kAzure;
}

std::chrono::system_clock::time_point Modified(const afs::FileInfo& info) {
  return std::chrono::time_point_cast<std::chrono::system_clock::duration>(info.mtime());
}

// Whole or not at all: S3 shows an object when its last part is there. Azure makes an empty one
// first, and Google's client finishes also what was stopped; there an object is written under a
// temporary name and then copied by the store, which replaces the old one at once. A temporary
// that a crash leaves goes with the collection of garbage (ListAll).
class ArrowStorage : public Storage {
 public:
  ArrowStorage(std::shared_ptr<afs::FileSystem> fs, std::string base, std::string uri)
      : fs_(std::move(fs)), base_(std::move(base)), uri_(std::move(uri)), store_(StoreOf(uri_)) {}

  absl::StatusOr<std::string> Read(std::string_view path, std::int64_t max_bytes) override {
    return ReadWhole(*this, path, max_bytes);
  }

  absl::StatusOr<std::unique_ptr<StoredReader>> Open(std::string_view path) override {
    auto info = Info(path);
    if (!info.ok()) return info.status();
    if (!info->IsFile()) return absl::NotFoundError("no object " + info->path());
    // Azure is not asked: the size is known.
    auto file = Caught([&] { return fs_->OpenInputFile(*info); });
    if (!file.ok()) return Error(file.status(), "open", info->path());
    return NewArrowReader(*file, info->size(), info->path());
  }

  absl::Status Write(std::string_view path, std::string_view bytes) override {
    auto full = Full(path);
    if (!full.ok()) return full.status();
    return Put(*full, [&](arrow::io::OutputStream& stream) {
      const auto status = Caught(
          [&] { return stream.Write(bytes.data(), static_cast<std::int64_t>(bytes.size())); });
      return status.ok() ? absl::OkStatus() : Error(status, "write", *full);
    });
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
    Transferred done;
    auto status = Put(*full, [&](arrow::io::OutputStream& stream) {
      return Pump(**source, stream, *full, check, &done);
    });
    if (!status.ok()) return status;
    auto info = Info(path);
    if (!info.ok()) return info.status();
    if (info->size() != done.size_bytes) {
      return absl::DataLossError("uploaded " + std::to_string(done.size_bytes) + " bytes to " +
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
    auto files = ListAll(prefix);
    if (!files.ok()) return files;
    std::erase_if(*files, [](const StoredFile& file) { return !TemporaryOf(file.path).empty(); });
    return files;
  }

  // Does not ask the store for more: a bucket may hold millions of objects.
  absl::StatusOr<std::vector<StoredFile>> ListFolder(std::string_view prefix) override {
    return Files(prefix, [&](const std::string& folder) {
      afs::FileSelector selector;
      selector.base_dir = folder;
      selector.allow_not_found = true;
      return Whole([&] { return fs_->GetFileInfo(selector); });
    });
  }

  absl::StatusOr<std::vector<StoredFile>> ListAll(std::string_view prefix) override {
    return Files(prefix, [&](const std::string& folder) { return Below(folder); });
  }

  absl::Status Delete(std::string_view path) override {
    auto found = Stat(path);
    if (!found.ok()) return found.status();
    if (!found->has_value()) return absl::OkStatus();
    const std::string full = *Full(path);
    const auto status = Whole([&] { return fs_->DeleteFile(full); });
    return WentOrWasNotThere(status, full);
  }

  absl::Status DeleteTree(std::string_view prefix) override {
    auto folder = Folder(prefix);
    if (!folder.ok()) return folder.status();
    // With the marker of the folder, which every listing would look into. A bucket stays.
    const bool with_marker = store_ != Store::kGoogle && folder->find('/') != std::string::npos;
    const auto status = Whole([&] {
      return with_marker ? fs_->DeleteDir(*folder)
                         : fs_->DeleteDirContents(*folder, /*missing_dir_ok=*/true);
    });
    return WentOrWasNotThere(status, *folder);
  }

  std::int64_t max_object_bytes() const override {
    return store_ == Store::kS3 ? kMostS3Bytes : Storage::max_object_bytes();
  }

 private:
  // Of a call that may be made twice: the other stores' clients repeat all that broke.
  template <typename Call>
  auto Whole(const Call& call) const -> decltype(call()) {
    const auto caught = [&] { return Caught(call); };
    if (store_ != Store::kAzure) return caught();
    return UntilWhole(caught, [](auto delay) { std::this_thread::sleep_for(delay); });
  }

  using Fill = std::function<absl::Status(arrow::io::OutputStream&)>;

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
    auto info = Whole([&] { return fs_->GetFileInfo(*full); });
    if (!info.ok()) return Error(info.status(), "look up", *full);
    return *info;
  }

  // The object `full` of what `fill` writes, or what was there before.
  absl::Status Put(const std::string& full, const Fill& fill) {
    if (store_ == Store::kS3) return PutStream(full, fill);
    const std::size_t name = full.rfind('/') + 1;
    const std::string folder = full.substr(0, name) + std::string(kTemporaryPrefix) + NewUuid4();
    const std::string temporary = folder + "/" + full.substr(name);
    absl::Status status = PutStream(temporary, fill);
    if (status.ok()) {
      const auto copied = Whole([&] { return fs_->CopyFile(temporary, full); });
      if (!copied.ok()) status = Error(copied, "write", full);
    }
    // At worst the collection of garbage finds it. Of Azure as a folder: to delete one object
    // Arrow takes a lease, and leaves a marker of the folder it was in.
    (void)Whole([&] {
      return store_ == Store::kAzure ? fs_->DeleteDir(folder) : fs_->DeleteFile(temporary);
    });
    return status;
  }

  absl::Status PutStream(const std::string& full, const Fill& fill) {
    // Twice is safe in Azure, where it makes an empty object: the name is this call's own.
    auto stream = Whole([&] { return fs_->OpenOutputStream(full); });
    if (!stream.ok()) return Error(stream.status(), "create", full);
    absl::Status status = fill(**stream);
    if (status.ok()) {
      const auto closed = Caught([&] { return (*stream)->Close(); });
      if (!closed.ok()) status = Error(closed, "write", full);
    }
    if (!status.ok()) (void)Caught([&] { return (*stream)->Abort(); });
    return status;
  }

  absl::Status Pump(StoredReader& source, arrow::io::OutputStream& stream, const std::string& name,
                    const TransferCheck& check, Transferred* done) {
    Sha256 hash;
    std::int64_t queued = 0;
    while (done->size_bytes < source.size_bytes()) {
      auto chunk = source.ReadAt(done->size_bytes, kChunkBytes);
      if (!chunk.ok()) return chunk.status();
      if (chunk->empty()) return absl::DataLossError("the file became shorter during upload");
      const auto size = static_cast<std::int64_t>(chunk->size());
      hash.Update(*chunk);
      const auto written = Caught([&] { return stream.Write(chunk->data(), size); });
      if (!written.ok()) return Error(written, "write", name);
      done->size_bytes += size;
      if (check) {
        if (auto status = check(size); !status.ok()) return status;
      }
      queued += size;
      if (store_ != Store::kS3 || queued < kMostQueuedBytes) continue;
      // Arrow copies what it sends to S3 and sends it later: a disk is faster than a network.
      const auto sent = Caught([&] { return stream.Flush(); });
      if (!sent.ok()) return Error(sent, "write", name);
      queued = 0;
    }
    done->sha256 = hash.FinishHex();
    return absl::OkStatus();
  }

  // Of what `list` finds in the folder `prefix` the objects, sorted by path.
  template <typename ListOf>
  absl::StatusOr<std::vector<StoredFile>> Files(std::string_view prefix, const ListOf& list) {
    auto folder = Folder(prefix);
    if (!folder.ok()) return folder.status();
    auto infos = list(*folder);
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

  arrow::Result<afs::FileInfoVector> Below(const std::string& folder) {
    afs::FileSelector selector;
    selector.base_dir = folder;
    selector.allow_not_found = true;
    selector.recursive = store_ != Store::kAzure;
    if (selector.recursive) return Caught([&] { return fs_->GetFileInfo(selector); });
    // Arrow asks Azure once a folder, too, but an exception in one further down ends the process.
    afs::FileInfoVector all;
    for (std::vector<std::string> folders = {folder}; !folders.empty();) {
      selector.base_dir = std::move(folders.back());
      folders.pop_back();
      ARROW_ASSIGN_OR_RAISE(auto infos, Whole([&] { return fs_->GetFileInfo(selector); }));
      for (const afs::FileInfo& info : infos) {
        if (info.IsDirectory()) folders.push_back(info.path());
      }
      std::move(infos.begin(), infos.end(), std::back_inserter(all));
    }
    return all;
  }

  absl::Status WentOrWasNotThere(const arrow::Status& status, const std::string& name) const {
    if (status.ok() || arrow::internal::ErrnoFromStatus(status) == ENOENT) return absl::OkStatus();
    return Error(status, "delete", name);
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
  const Store store_;
};

arrow::Result<std::shared_ptr<afs::FileSystem>> OpenFileSystem(std::string_view uri,
                                                               std::string* base) {
  switch (StoreOf(uri)) {
    case Store::kS3:
      return OpenS3(uri, base);
    case Store::kGoogle:
      return OpenGcs(uri, base);
    case Store::kAzure:
      return OpenAzure(uri, base);
  }
  return arrow::Status::Invalid("no such store");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Storage>> OpenArrowStorage(std::string_view uri) {
  object_store_used = true;
  std::string base;
  auto fs = Caught([&] { return OpenFileSystem(uri, &base); });
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
