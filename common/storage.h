#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quantry {

// One object. `path` is relative to the storage's root, with '/' between
// parts.
struct StoredFile {
  std::string path;
  std::int64_t size_bytes = 0;
  std::chrono::system_clock::time_point modified{};  // by the store's clock
};

// What went over in one Upload or Download.
struct Transferred {
  std::int64_t size_bytes = 0;
  std::string sha256;  // 64 lower-case hex digits
};

// Called with the bytes of every chunk moved. Anything but OK ends the
// transfer with that status: how transfers are cancelled and counted.
using TransferCheck = std::function<absl::Status(std::int64_t bytes)>;

// Random access to one object. Thread-safe. UNAVAILABLE also when it was replaced: open it anew.
class StoredReader {
 public:
  virtual ~StoredReader() = default;
  virtual std::int64_t size_bytes() const = 0;
  // At most `length` bytes from `offset`; fewer only at the end.
  virtual absl::StatusOr<std::string> ReadAt(std::int64_t offset, std::int64_t length) = 0;
};

// A folder of objects named by one URI: file:, s3:, gs: or abfs:. Thread-safe.
//
// Relative paths are refused (INVALID_ARGUMENT) when they are absolute, empty,
// or hold "..", ".", empty parts, backslashes or NUL: names may come from
// attackers. Errors: NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED (disk
// full), UNAVAILABLE (object store; try again), INTERNAL.
//
// Crash: an object is there whole or not at all. Locally that is a temporary
// file in the same folder, fsync, rename, fsync of the folder; in gs: and abfs: a
// temporary object, copied by the store. Names of temporaries hold ".tmp-"; they are
// not listed (but see ListAll).
class Storage {
 public:
  virtual ~Storage() = default;

  // RESOURCE_EXHAUSTED when the object is larger than `max_bytes`.
  virtual absl::StatusOr<std::string> Read(std::string_view path, std::int64_t max_bytes) = 0;
  virtual absl::StatusOr<std::unique_ptr<StoredReader>> Open(std::string_view path) = 0;
  virtual absl::Status Write(std::string_view path, std::string_view bytes) = 0;

  // Copies into `local_file` (created or replaced, synced) and hashes on the way.
  virtual absl::StatusOr<Transferred> Download(std::string_view path, const std::string& local_file,
                                               const TransferCheck& check) = 0;
  // Copies `local_file` to `path`, replacing what is there, and hashes on the way.
  virtual absl::StatusOr<Transferred> Upload(const std::string& local_file, std::string_view path,
                                             const TransferCheck& check) = 0;

  // nullopt when there is no object of this name.
  virtual absl::StatusOr<std::optional<StoredFile>> Stat(std::string_view path) = 0;
  // All objects below `prefix` ("" = everything), sorted by path. A missing
  // prefix is an empty list.
  virtual absl::StatusOr<std::vector<StoredFile>> List(std::string_view prefix) = 0;

  // Of List only those directly in the folder `prefix`, without what lies deeper.
  virtual absl::StatusOr<std::vector<StoredFile>> ListFolder(std::string_view prefix);

  // List, and what uploads that did not end left behind (TemporaryOf): in a store where objects
  // are made under another name first. Those of uploads in progress too.
  virtual absl::StatusOr<std::vector<StoredFile>> ListAll(std::string_view prefix) {
    return List(prefix);
  }

  // Missing objects are fine in both.
  virtual absl::Status Delete(std::string_view path) = 0;
  virtual absl::Status DeleteTree(std::string_view prefix) = 0;

  // The largest object that can be written; of s3: 10,000 parts of 10 MiB.
  virtual std::int64_t max_object_bytes() const { return std::numeric_limits<std::int64_t>::max(); }

  // The local folder behind a file: URI; "" for object stores.
  virtual std::string local_root() const { return ""; }
};

// What holds an object until it becomes another, or because the upload did not end: of an
// object store's "a/.tmp-UUID/name" the folder "a/.tmp-UUID", of a folder's "a/.tmp-7-0" (a
// process and a count) the file itself; "" for all other objects.
std::string_view TemporaryOf(std::string_view path);

// INVALID_ARGUMENT for a URI that is not a folder of a known scheme. s3, gs and
// abfs take credentials from their usual environment variables and files, and
// options from the query (s3://bucket/prefix?endpoint_override=host:port&scheme=http).
// Tokens go to the cloud's own hosts alone (storage_gcs.h, storage_azure.h).
absl::StatusOr<std::unique_ptr<Storage>> OpenStorage(std::string_view uri);

// "file:///a/b" -> "/a/b", percent-decoded; "/a/b" stays. INVALID_ARGUMENT for
// other schemes, relative paths and remote hosts.
absl::StatusOr<std::string> LocalPathFromUri(std::string_view uri);
// The inverse: "/a b" -> "file:///a%20b".
std::string UriFromLocalPath(std::string_view path);

// The URI of a folder below another: ("s3://b/p?region=x", "a/b") gives
// "s3://b/p/a/b?region=x". `relative` is a clean relative path.
std::string JoinUri(std::string_view uri, std::string_view relative);

// How errors name an object store's folder: "bucket/prefix", "container/prefix".
std::string ObjectPathOf(std::string_view uri);

// INVALID_ARGUMENT unless `path` is a clean relative path (see Storage).
absl::Status CheckRelativePath(std::string_view path);

// Last call before exit of a process that used object stores: the S3 client
// may crash in static destructors otherwise.
void FinalizeStorage();

}  // namespace quantry
