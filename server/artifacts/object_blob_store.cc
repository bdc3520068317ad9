#include "server/artifacts/object_blob_store.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "server/artifacts/file_ops.h"
#include "server/artifacts/object_root.h"
#include "server/artifacts/partial_upload.h"

namespace quantry::server {
namespace {

// A blob that was found counts as new (BlobStore::Find): to this precision, below
// the shortest grace period (a minute), so that not every find writes.
constexpr auto kFoundPrecision = std::chrono::seconds(20);
constexpr auto kListedFor = std::chrono::seconds(5);
// The store answers each in tens of milliseconds, and a model may have hundreds.
constexpr size_t kFindsAtOnce = 16;
// The engine takes no larger header of a file of weights, so more of one is never read.
constexpr std::int64_t kHeadBytes = std::int64_t{64} << 20;
constexpr std::int64_t kLengthBytes = 8;  // of a safetensors header, before it

// How much of a file of weights a reader of its header needs.
std::int64_t HeadOf(std::string_view begin) {
  std::uint64_t header = 0;
  for (size_t i = kLengthBytes; i-- > 0;)
    header = header << 8 | static_cast<std::uint8_t>(begin[i]);
  return header <= kHeadBytes ? kLengthBytes + static_cast<std::int64_t>(header) : kHeadBytes;
}

// Bytes of each tenant's finished blobs, as the store listed them a short while ago: every
// upload asks each 16 MiB, and a listing is a call for each thousand blobs. What other servers
// finish meanwhile is seen with the next one.
class FinishedBytes {
 public:
  explicit FinishedBytes(Storage* storage) : storage_(storage) {}

  absl::StatusOr<std::int64_t> Of(const std::string& tenant) {
    const auto now = std::chrono::steady_clock::now();
    std::int64_t changes = 0;
    {
      const std::lock_guard lock(mutex_);
      const auto known = listed_.find(tenant);
      if (known != listed_.end() && now - known->second.at < kListedFor) return known->second.bytes;
      changes = changes_;
    }
    const auto files = storage_->List(tenant);
    if (!files.ok()) return ObjectError(files.status(), tenant);
    Listing listing{.at = now};
    for (const StoredFile& file : *files) listing.bytes += file.size_bytes;
    const std::lock_guard lock(mutex_);
    std::erase_if(listed_, [&](const auto& old) { return now - old.second.at >= kListedFor; });
    if (changes == changes_) listed_[tenant] = listing;
    return listing.bytes;
  }

  // This server finished a blob.
  void Changed() {
    const std::lock_guard lock(mutex_);
    listed_.clear();
    ++changes_;
  }

 private:
  struct Listing {
    std::chrono::steady_clock::time_point at;
    std::int64_t bytes = 0;
  };

  Storage* const storage_;
  std::mutex mutex_;
  std::map<std::string, Listing> listed_;
  std::int64_t changes_ = 0;  // a listing that saw one begin is not kept
};

class ObjectUpload : public BlobUpload {
 public:
  ObjectUpload(PartialUpload partial, BlobId blob, Storage* storage, FinishedBytes* finished,
               std::string key)
      : partial_(std::move(partial)),
        blob_(std::move(blob)),
        storage_(storage),
        finished_(finished),
        key_(std::move(key)) {}

  std::int64_t committed_bytes() const override { return partial_.committed_bytes(); }
  absl::Status Append(std::string_view data) override { return partial_.Append(data); }

  absl::Status Finish(const TransferCheck& check) override {
    if (absl::Status status = partial_.CheckWhole(); !status.ok()) return status;
    absl::Status stopped;
    const auto moved = storage_->Upload(partial_.path(), key_, [&](std::int64_t bytes) {
      return stopped = check ? check(bytes) : absl::OkStatus();
    });
    if (!stopped.ok()) return stopped;
    if (!moved.ok()) return ObjectError(moved.status(), key_);
    // The file was right when it was written; what went away is what was read again.
    if (moved->sha256 != blob_.sha256) {
      storage_->Delete(key_).IgnoreError();  // nobody who checks takes it for the blob
      return partial_.Discard(moved->sha256);
    }
    finished_->Changed();
    unlink(partial_.path().c_str());
    return absl::OkStatus();
  }

 private:
  PartialUpload partial_;
  const BlobId blob_;
  Storage* const storage_;
  FinishedBytes* const finished_;
  const std::string key_;
};

class ObjectBlobStore : public BlobStore {
 public:
  ObjectBlobStore(std::string root_uri, std::unique_ptr<Storage> storage, std::string spool)
      : root_uri_(std::move(root_uri)),
        storage_(std::move(storage)),
        finished_(storage_.get()),
        spool_(std::move(spool)) {}

  absl::StatusOr<BlobState> Find(std::string_view tenant, const BlobId& blob) override {
    if (absl::Status status = CheckBlobId(tenant, blob); !status.ok()) return status;
    auto complete = IsThere(tenant, blob);
    if (!complete.ok()) return complete.status();
    if (*complete) return BlobState{.complete = true, .committed_bytes = blob.size_bytes};
    return BlobState{.committed_bytes =
                         PartialUpload::CommittedBytes(PartialPath(tenant, blob), blob)};
  }

  absl::StatusOr<std::vector<BlobState>> FindAll(std::string_view tenant,
                                                 const std::vector<BlobId>& blobs,
                                                 const Awaited& awaited) override {
    std::vector<absl::StatusOr<BlobState>> found(blobs.size(), BlobState{});
    std::atomic<size_t> next = 0;
    {
      std::vector<std::jthread> threads(std::min(blobs.size(), kFindsAtOnce));
      for (std::jthread& thread : threads) {
        thread = std::jthread([&] {
          for (size_t i = next++; i < blobs.size(); i = next++) {
            const absl::Status status = awaited();
            found[i] = status.ok() ? Find(tenant, blobs[i]) : status;
          }
        });
      }
    }
    std::vector<BlobState> states;
    for (const auto& state : found) {
      if (!state.ok()) return state.status();
      states.push_back(*state);
    }
    return states;
  }

  absl::StatusOr<std::unique_ptr<BlobUpload>> Begin(std::string_view tenant, const BlobId& blob,
                                                    std::int64_t offset) override {
    if (absl::Status status = CheckBlobId(tenant, blob); !status.ok()) return status;
    if (absl::Status made = MakeFolders(SpoolOf(tenant)); !made.ok()) return made;
    auto partial = PartialUpload::Open(PartialPath(tenant, blob), blob, offset);
    if (!partial.ok()) return partial.status();
    return std::make_unique<ObjectUpload>(*std::move(partial), blob, storage_.get(), &finished_,
                                          Key(tenant, blob));
  }

  absl::StatusOr<std::int64_t> StoredBytes(std::string_view tenant) override {
    if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
    const auto finished = finished_.Of(std::string(tenant));
    if (!finished.ok()) return finished;
    const auto partial = BytesInFolder(SpoolOf(tenant));
    if (!partial.ok()) return partial;
    return *finished + *partial;
  }

  std::int64_t max_blob_bytes() const override { return storage_->max_object_bytes(); }
  std::string Uri(std::string_view tenant) const override { return JoinUri(root_uri_, tenant); }
  std::string RootUri() const override { return root_uri_; }
  std::string SpoolUri() const override { return UriFromLocalPath(spool_); }

  absl::StatusOr<std::int64_t> Place(std::string_view tenant, const BlobId& blob, BlobPart part,
                                     std::int64_t most, const std::string& path) override {
    if (absl::Status status = CheckBlobId(tenant, blob); !status.ok()) return status;
    if (part != BlobPart::kWhole) return PlacePart(Key(tenant, blob), part, most, path);
    if (blob.size_bytes > most) return TooMuch(most);
    const auto moved = storage_->Download(Key(tenant, blob), path, nullptr);
    if (!moved.ok()) return ObjectError(moved.status(), blob.sha256);
    if (moved->sha256 == blob.sha256) return moved->size_bytes;
    unlink(path.c_str());
    return MakeError(Reason::kArtifactCorrupt,
                     absl::StrCat("blob ", blob.sha256, " has sha256 ", moved->sha256,
                                  " in the store; delete it there and upload it again"),
                     {{"sha256", blob.sha256}, {"got_sha256", moved->sha256}});
  }

 private:
  static std::string Key(std::string_view tenant, const BlobId& blob) {
    return absl::StrCat(std::string(tenant), "/", blob.sha256);
  }
  std::string SpoolOf(std::string_view tenant) const {
    return absl::StrCat(spool_, "/", std::string(tenant), "/", std::string(kPartialFolder));
  }
  std::string PartialPath(std::string_view tenant, const BlobId& blob) const {
    return absl::StrCat(SpoolOf(tenant), "/", blob.sha256);
  }

  absl::StatusOr<bool> IsThere(std::string_view tenant, const BlobId& blob) {
    const std::string key = Key(tenant, blob);
    auto found = storage_->Stat(key);
    if (!found.ok()) return ObjectError(found.status(), key);
    if (!found->has_value() || (*found)->size_bytes != blob.size_bytes) return false;
    const auto old = std::chrono::system_clock::now() - kFoundPrecision;
    if ((*found)->modified >= old) return true;
    const std::string marker =
        absl::StrCat(std::string(tenant), "/", std::string(kAskedFolder), "/", blob.sha256);
    auto asked = storage_->Stat(marker);
    if (!asked.ok()) return ObjectError(asked.status(), marker);
    if (asked->has_value() && (*asked)->modified >= old) return true;
    if (auto status = storage_->Write(marker, ""); !status.ok()) return ObjectError(status, marker);
    // Once more: it may have been collected just before it was marked.
    found = storage_->Stat(key);
    if (!found.ok()) return ObjectError(found.status(), key);
    return found->has_value();
  }

  static absl::Status TooMuch(std::int64_t most) {
    return MakeError(Reason::kResourceLimit,
                     absl::StrCat("wanted files of at most ", most, " more bytes, got more"));
  }

  static absl::StatusOr<std::string> ReadPart(StoredReader& object, BlobPart part,
                                              std::int64_t most) {
    if (part == BlobPart::kSize) return "";
    auto head = object.ReadAt(0, kLengthBytes);
    if (!head.ok() || head->size() < kLengthBytes) return head;
    const std::int64_t size = std::min(HeadOf(*head), object.size_bytes());
    return size > most ? TooMuch(most) : object.ReadAt(0, size);
  }

  absl::StatusOr<std::int64_t> PlacePart(const std::string& key, BlobPart part, std::int64_t most,
                                         const std::string& path) {
    auto object = storage_->Open(key);
    if (!object.ok()) return ObjectError(object.status(), key);
    const auto bytes = ReadPart(**object, part, most);
    if (HasReason(bytes.status(), Reason::kResourceLimit)) return bytes.status();
    if (!bytes.ok()) return ObjectError(bytes.status(), key);
    if (absl::Status status = WriteFileAtomically(path, *bytes); !status.ok()) return status;
    std::error_code error;
    std::filesystem::resize_file(path, static_cast<std::uintmax_t>((*object)->size_bytes()), error);
    if (error) return DiskError("extend", path, error.value());
    return static_cast<std::int64_t>(bytes->size());
  }

  const std::string root_uri_;
  const std::unique_ptr<Storage> storage_;
  FinishedBytes finished_;
  const std::string spool_;
};

}  // namespace

std::unique_ptr<BlobStore> NewObjectBlobStore(std::string root_uri,
                                              std::unique_ptr<Storage> storage, std::string spool) {
  return std::make_unique<ObjectBlobStore>(std::move(root_uri), std::move(storage),
                                           std::move(spool));
}

absl::StatusOr<std::unique_ptr<BlobStore>> OpenObjectBlobStore(const std::string& root_uri,
                                                               const std::string& spool) {
  auto root = OpenObjectRoot("blob_root", root_uri);
  if (!root.ok()) return root.status();
  if (absl::Status status = MakeFolders(spool); !status.ok()) return status;
  return NewObjectBlobStore(std::move(root->uri), std::move(root->storage), spool);
}

}  // namespace quantry::server
