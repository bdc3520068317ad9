#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/sandbox/identity.h"
#include "common/unique_fd.h"

namespace quantry::agent {

// Where one attempt keeps its files: {work_dir}/jobs/{job uid}/{epoch}/. Two
// epochs never share a folder, so a restarted agent cannot mix them up.
struct AttemptDir {
  std::string root;
  std::string job_file() const { return root + "/job.json"; }
  std::string model() const { return root + "/model"; }
  std::string text() const { return root + "/text"; }
  std::string output() const { return root + "/output"; }
  std::string checkpoint() const { return root + "/checkpoint"; }
  // Hard links to checkpoint files on their way to the store.
  std::string staged() const { return root + "/staged"; }
};

// For an engine that runs as another account: it may read the attempt's files
// and owns output and checkpoint. Needs root.
absl::Status HandOver(const AttemptDir& attempt, const Identity& account);

// The agent's scratch folder. One agent at a time (flock). Layout:
//   lock
//   cache/{first two hex digits}/{sha256}    see BlobCache
//   jobs/{job uid}/{epoch}/...               see AttemptDir
// Attempts remove their folder when they end. After a crash only checkpoints
// are kept, because the same worker may get the job back; the next attempt
// verifies them by sha256 before it uses them.
class WorkDir {
 public:
  // Creates the folder, locks it and removes what a crashed agent left, but for
  // checkpoints younger than a day. FAILED_PRECONDITION when another agent
  // holds it.
  static absl::StatusOr<WorkDir> Open(const std::string& path);

  // INVALID_ARGUMENT when `job_uid` is no plain name.
  absl::StatusOr<AttemptDir> CreateAttempt(std::string_view job_uid, std::int64_t epoch) const;
  // Removes the attempt; `keep_checkpoint` leaves its checkpoint folder.
  void RemoveAttempt(const AttemptDir& attempt, bool keep_checkpoint) const;
  // Removes the job's attempts before this one: their files are taken over.
  void RemoveEarlierAttempts(const AttemptDir& attempt) const;
  // Removes kept checkpoints of jobs that no attempt runs now.
  void RemoveKeptCheckpoints() const;

  const std::string& path() const { return path_; }
  std::string cache() const { return path_ + "/cache"; }
  absl::StatusOr<std::int64_t> FreeBytes() const;

 private:
  WorkDir(std::string path, UniqueFd lock)
      : path_(std::move(path)), lock_(std::move(lock)), folders_(std::make_unique<std::mutex>()) {}
  std::string jobs() const { return path_ + "/jobs"; }
  void RemoveLeftovers() const;

  std::string path_;
  UniqueFd lock_;
  // Held while folders of attempts are made, judged and removed: slots do so side by side.
  std::unique_ptr<std::mutex> folders_;
};

}  // namespace quantry::agent
