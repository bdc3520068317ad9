#include "worker/agent/blob_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <mutex>
#include <vector>

#include "common/digest.h"
#include "common/errors.h"
#include "common/log.h"
#include "common/storage_internal.h"
#include "worker/agent/file_check.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;

// An error only when `check` wants an end.
absl::StatusOr<bool> Matches(const std::string& path, const std::string& sha256,
                             std::int64_t size_bytes, const TransferCheck& check) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (error || static_cast<std::int64_t>(size) != size_bytes) return false;
  return HasSha256(path, sha256, check);
}

absl::Status FileError(const std::error_code& error, std::string_view action,
                       const std::string& path) {
  return storage_internal::ErrnoStatus(error.value(), action, path);
}

// Makes `target`, replacing an earlier try's, a link to `file` or a copy of it.
absl::Status Link(const std::string& file, const std::string& target) {
  std::error_code error;
  fs::remove(target, error);
  if (!error) fs::create_hard_link(file, target, error);
  if (error) {  // the file system knows no links
    fs::copy_file(file, target, fs::copy_options::overwrite_existing, error);
  }
  return error ? FileError(error, "link", target) : absl::OkStatus();
}

// Whether it is a whole one, not on its way here.
bool IsBlob(const fs::path& path) {
  const std::string name = path.filename().native();
  return IsSha256Hex(name) && path.parent_path().filename() == name.substr(0, 2);
}

}  // namespace

std::string BlobCache::PathOf(const std::string& sha256) const {
  return root_ + "/" + sha256.substr(0, 2) + "/" + sha256;
}

absl::Status BlobCache::Fetch(Storage& blobs, const std::string& sha256, std::int64_t size_bytes,
                              const std::string& target, const TransferCheck& check) {
  const std::shared_lock lock(fetching_);
  // Under a name of its own: bytes get their digest's name only once they have it.
  const std::string cached = PathOf(sha256);
  const std::string fresh = cached + ".new-" + std::to_string(gettid());
  auto moved = blobs.Download(sha256, fresh, check);
  if (!moved.ok()) {
    if (!absl::IsNotFound(moved.status())) return moved.status();
    return MakeError(Reason::kSourceMissing,
                     "blob " + sha256 + " is not in the server's store; upload it again",
                     {{"sha256", sha256}});
  }
  if (moved->sha256 != sha256 || moved->size_bytes != size_bytes) {
    unlink(fresh.c_str());
    return MakeError(Reason::kArtifactCorrupt,
                     "blob " + sha256 + " should have " + std::to_string(size_bytes) +
                         " bytes with that sha256, the store holds " +
                         std::to_string(moved->size_bytes) + " bytes with sha256 " + moved->sha256 +
                         "; delete it there and upload it again",
                     {{"sha256", sha256}, {"got_sha256", moved->sha256}});
  }
  chmod(fresh.c_str(), 0444);
  // First, since the cached name may be evicted at once.
  if (auto status = Link(fresh, target); !status.ok()) {
    unlink(fresh.c_str());
    return status;
  }
  if (rename(fresh.c_str(), cached.c_str()) != 0) {
    return storage_internal::ErrnoStatus(errno, "rename to", cached);
  }
  return absl::OkStatus();
}

absl::Status BlobCache::Place(Storage& blobs, const std::string& sha256, std::int64_t size_bytes,
                              const std::string& target, const TransferCheck& check) {
  if (!IsSha256Hex(sha256)) {
    return MakeError(Reason::kInvalidSpec,
                     "wanted a sha256 of 64 lower-case hex digits, got \"" + sha256 + "\"",
                     {{"sha256", sha256}});
  }
  std::error_code ignored;
  fs::create_directories(fs::path(target).parent_path(), ignored);
  const std::string cached = PathOf(sha256);
  // Linked before it is looked at: what is linked is evicted no more.
  if (fs::exists(cached, ignored) && Link(cached, target).ok()) {
    const auto matches = Matches(target, sha256, size_bytes, check);
    if (!matches.ok()) return matches.status();
    if (*matches) {
      // The age that Evict goes by; the owner may set it on a read-only file.
      utimensat(AT_FDCWD, cached.c_str(), nullptr, 0);
      return absl::OkStatus();
    }
    log::Warning("a cached blob is damaged and fetched again", {{"sha256", sha256}});
    unlink(cached.c_str());
  }
  MakeRoom(size_bytes);
  return Fetch(blobs, sha256, size_bytes, target, check);
}

void BlobCache::MakeRoom(std::int64_t bytes) {
  std::error_code error;
  const fs::space_info space = fs::space(root_, error);
  if (error) return;
  const auto missing = bytes + limits_.spare_bytes - static_cast<std::int64_t>(space.available);
  if (missing > 0) Evict(missing);
}

std::vector<BlobCache::Entry> BlobCache::Unused(bool parts_too) {
  std::vector<Entry> entries;
  std::error_code error;
  for (fs::recursive_directory_iterator it(root_, error), end; !error && it != end;
       it.increment(error)) {
    std::error_code gone;
    if (!it->is_regular_file(gone) || (!parts_too && !IsBlob(it->path()))) continue;
    if (it->hard_link_count(gone) > 1) continue;  // a running job has it: that would free nothing
    entries.push_back(
        {it->last_write_time(gone), it->path(), static_cast<std::int64_t>(it->file_size(gone))});
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.used < b.used; });
  return entries;
}

void BlobCache::Evict(std::int64_t bytes) {
  // What fetches are writing is left alone; without any, it is of one that broke off.
  const std::unique_lock idle(fetching_, std::try_to_lock);
  Remove(Unused(idle.owns_lock()), bytes);
}

void BlobCache::Trim() {
  if (limits_.max_bytes == 0) return;
  const std::vector<Entry> entries = Unused(false);
  std::int64_t above = -limits_.max_bytes;
  for (const Entry& entry : entries) above += entry.size;
  Remove(entries, above);
}

void BlobCache::Remove(const std::vector<Entry>& entries, std::int64_t bytes) {
  std::error_code error;
  for (const Entry& entry : entries) {
    if (bytes <= 0) return;
    if (fs::remove(entry.path, error)) bytes -= entry.size;
  }
}

}  // namespace quantry::agent
