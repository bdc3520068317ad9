#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/storage.h"
#include "quantry/v1/engine.pb.h"
#include "worker/agent/job_session.h"
#include "worker/agent/work_dir.h"
#include "worker/agent/worker_client.h"

namespace quantry::agent {

// Removes what this job has stored as checkpoints; for jobs that ended well.
void RemoveStoredCheckpoints(const v1::Lease& lease);

// Brings `lease.resume` into `dir.checkpoint()`: from another attempt's folder
// on this machine when the bytes are the same, else from the store. Every file
// is verified by sha256. Without a resume: nothing. DATA_LOSS or NOT_FOUND when
// the checkpoint cannot be had whole (the caller starts over).
absl::Status RestoreCheckpoint(const v1::Lease& lease, const AttemptDir& dir,
                               const TransferCheck& check);

// The object a checkpoint file is stored as: its path and the start of its
// sha256. A file that changes under its name thus never replaces one that the
// committed checkpoint still needs, and an unchanged one is never sent twice.
std::string StoredName(const v1::ArtifactFile& file);

// Copies block checkpoints to the store beside the running engine and commits
// them. Only the newest offered checkpoint counts: when uploads are slower than
// blocks, the ones between are skipped. After a commit the objects only older
// checkpoints needed are removed.
//
// Owns one thread; destruction abandons an upload in progress. Offer and Flush belong to the thread
// that runs the engine. Failures are logged and leave the last committed checkpoint in force.
class CheckpointUploader {
 public:
  CheckpointUploader(const v1::Lease& lease, const AttemptDir& dir, WorkerClient& client,
                     JobSession& session, TransferCheck check);
  ~CheckpointUploader();

  // Links the files aside, so that the engine may remove them meanwhile.
  void Offer(const v1::EngineCheckpoint& checkpoint);
  // Waits until the last offered checkpoint is committed or given up, at most
  // `timeout`.
  void Flush(std::chrono::milliseconds timeout);
  // Blocks of the last committed checkpoint.
  int committed_blocks() const;

 private:
  struct Staged {
    std::string folder;
    v1::EngineCheckpoint checkpoint;
  };
  void Run(std::stop_token stop);
  absl::Status Upload(const Staged& staged, const std::stop_token& stop);
  absl::Status SendFile(Storage& storage, const Staged& staged, v1::ArtifactFile& file,
                        const std::stop_token& stop);
  absl::Status CheckGoingOn(const std::stop_token& stop) const;
  void RemoveSuperseded(Storage& storage, const v1::CheckpointRef& committed);

  const std::string trace_id_;
  const std::string uri_;
  std::string resumed_uri_;  // an older attempt's folder, removed once replaced
  const AttemptDir dir_;
  WorkerClient& client_;
  JobSession& session_;
  const TransferCheck check_;

  std::set<std::string> stored_;  // objects below uri_; the thread's own
  std::int64_t sequence_ = 0;     // of the last checkpoint; the thread's own

  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  std::optional<Staged> pending_;
  bool busy_ = false;
  int committed_blocks_ = 0;
  int offered_ = 0;
  std::jthread thread_;  // last: starts when all else is there
};

}  // namespace quantry::agent
