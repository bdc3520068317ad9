#include "worker/agent/work_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <vector>

#include "common/errors.h"
#include "common/log.h"
#include "common/storage.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::hours kKeepCheckpoints{24};

std::vector<fs::path> Folders(const fs::path& parent) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
    found.push_back(it->path());
  }
  return found;
}

void Remove(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) {
    log::Warning("cannot remove scratch files",
                 {{"path", path.native()}, {"error", error.message()}});
  }
}

// Everything but the files of the checkpoint; the attempt itself when there are none. Folders
// in there are models made on the way, which the next attempt makes anew.
void Strip(const fs::path& attempt) {
  for (const fs::path& entry : Folders(attempt)) {
    if (entry.filename() != "checkpoint") Remove(entry);
  }
  for (const fs::path& entry : Folders(attempt / "checkpoint")) {
    std::error_code error;
    if (fs::is_directory(fs::symlink_status(entry, error))) Remove(entry);
  }
  if (Folders(attempt / "checkpoint").empty()) Remove(attempt);
}

bool IsOld(const fs::path& path) {
  std::error_code error;
  const auto written = fs::last_write_time(path, error);
  return error || fs::file_time_type::clock::now() - written > kKeepCheckpoints;
}

// Lets everybody read what is there; links lead to files of others.
void MakeReadable(const fs::path& path, std::error_code& error) {
  if (fs::is_symlink(path, error)) return;
  const bool folder = fs::is_directory(path, error);
  fs::permissions(path, folder ? fs::perms(0555) : fs::perms(0444), fs::perm_options::add, error);
  if (!folder) return;
  for (const fs::path& entry : Folders(path)) MakeReadable(entry, error);
}

void GiveAway(const fs::path& path, const Identity& account, std::error_code& error) {
  if (lchown(path.c_str(), account.uid, account.gid) != 0) {
    error = std::error_code(errno, std::generic_category());
  }
  std::error_code looked;
  const fs::file_status status = fs::symlink_status(path, looked);
  if (looked) error = looked;
  if (!fs::is_directory(status)) return;  // links lead to files of others
  for (const fs::path& entry : Folders(path)) GiveAway(entry, account, error);
}

void RemoveIfEmpty(const fs::path& folder) {
  std::error_code ignored;
  fs::remove(folder, ignored);  // fails on a folder that holds something
}

}  // namespace

absl::Status HandOver(const AttemptDir& attempt, const Identity& account) {
  std::error_code error;
  // {job uid} and {epoch}: what lies above them was checked at the start.
  for (const auto& folder : {fs::path(attempt.root).parent_path(), fs::path(attempt.root)}) {
    fs::permissions(folder, fs::perms(0111), fs::perm_options::add, error);
  }
  MakeReadable(attempt.root, error);
  GiveAway(attempt.output(), account, error);
  GiveAway(attempt.checkpoint(), account, error);
  if (!error) return absl::OkStatus();
  return MakeError(Reason::kStorageError,
                   "cannot hand " + attempt.root + " to " + account.name + ": " + error.message(),
                   {{"path", attempt.root}});
}

absl::StatusOr<WorkDir> WorkDir::Open(const std::string& path) {
  std::error_code error;
  for (const char* part : {"jobs", "cache"}) {
    fs::create_directories(fs::path(path) / part, error);
    if (error) {
      return MakeError(Reason::kInvalidConfig,
                       "cannot create the work folder " + path + ": " + error.message() +
                           "; name a writable one with --work-dir",
                       {{"work_dir", path}});
    }
  }
  const std::string absolute = fs::canonical(path, error).native();
  UniqueFd lock(open((absolute + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!lock.ok() || flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return MakeError(Reason::kDataDirLocked,
                     "the work folder " + absolute + " is in use by another quantry-worker (" +
                         std::strerror(errno) + "); give each one its own --work-dir",
                     {{"work_dir", absolute}});
  }
  WorkDir dir(absolute, std::move(lock));
  dir.RemoveLeftovers();
  return dir;
}

void WorkDir::RemoveLeftovers() const {
  for (const fs::path& job : Folders(jobs())) {
    for (const fs::path& attempt : Folders(job)) {
      if (IsOld(attempt / "checkpoint")) {
        Remove(attempt);
      } else {
        Strip(attempt);
      }
    }
    RemoveIfEmpty(job);
  }
}

absl::StatusOr<AttemptDir> WorkDir::CreateAttempt(std::string_view job_uid,
                                                  std::int64_t epoch) const {
  const std::string uid(job_uid);
  if (auto status = CheckRelativePath(uid); !status.ok()) return status;
  if (uid.find('/') != std::string::npos || epoch < 0) {
    return absl::InvalidArgumentError("job uid \"" + uid + "\" is no plain name");
  }
  AttemptDir attempt{jobs() + "/" + uid + "/" + std::to_string(epoch)};
  const std::lock_guard lock(*folders_);
  Remove(attempt.root);  // same epoch again: an agent restarted within the lease
  std::error_code error;
  for (const std::string& folder :
       {attempt.root, attempt.checkpoint(), attempt.text(), attempt.output()}) {
    fs::create_directories(folder, error);
    if (error) {
      return MakeError(
          error == std::errc::no_space_on_device ? Reason::kDiskFull : Reason::kStorageError,
          "cannot create " + folder + ": " + error.message(), {{"path", folder}});
    }
  }
  return attempt;
}

void WorkDir::RemoveAttempt(const AttemptDir& attempt, bool keep_checkpoint) const {
  const std::lock_guard lock(*folders_);
  if (keep_checkpoint) {
    Strip(attempt.root);
  } else {
    Remove(attempt.root);
  }
  RemoveIfEmpty(fs::path(attempt.root).parent_path());
}

void WorkDir::RemoveEarlierAttempts(const AttemptDir& attempt) const {
  const std::lock_guard lock(*folders_);
  const fs::path own(attempt.root);
  const std::int64_t epoch = std::atoll(own.filename().c_str());
  for (const fs::path& other : Folders(own.parent_path())) {
    // A later one runs in another slot: this attempt has lost its lease and is not told yet.
    if (std::atoll(other.filename().c_str()) < epoch) Remove(other);
  }
}

void WorkDir::RemoveKeptCheckpoints() const {
  const std::lock_guard lock(*folders_);
  for (const fs::path& job : Folders(jobs())) {
    for (const fs::path& attempt : Folders(job)) {
      // A running attempt has its text folder; a kept one was stripped of it.
      // One that cannot be looked at stays: the disk may be in trouble.
      std::error_code error;
      if (!fs::exists(attempt / "text", error) && !error) Remove(attempt);
    }
    RemoveIfEmpty(job);
  }
}

absl::StatusOr<std::int64_t> WorkDir::FreeBytes() const {
  struct statvfs info;
  if (statvfs(path_.c_str(), &info) != 0) {
    return absl::InternalError("statvfs " + path_ + ": " + std::strerror(errno));
  }
  return static_cast<std::int64_t>(info.f_bavail) * static_cast<std::int64_t>(info.f_frsize);
}

}  // namespace quantry::agent
