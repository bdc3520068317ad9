#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
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

// Brings `lease.resume` into `dir.checkpoint()`: from another attempt's folder
// on this machine when the bytes are the same, else from the store. Every file
// is verified by sha256. Without a resume: nothing. DATA_LOSS or NOT_FOUND when
// the checkpoint cannot be had whole (the caller starts over).
absl::Status RestoreCheckpoint(const v1::Lease& lease, const AttemptDir& dir,
                               const TransferCheck& check);

// Copies block checkpoints to the store beside the running engine and commits
// them. Only the newest offered checkpoint counts: when uploads are slower than
// blocks, the ones between are skipped. A file that is already in the store is
// not sent again; one that changed under its name moves the whole checkpoint to
// a folder of its own, so that the committed one stays readable until the next
// commit.
//
// Owns one thread. Offer and Flush belong to the thread that runs the engine.
// Failures are logged and leave the last committed checkpoint in force.
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
  absl::Status Upload(const Staged& staged);
  absl::Status SendFile(Storage& storage, const Staged& staged, const std::string& base,
                        v1::ArtifactFile& file);
  bool Conflicts(const v1::EngineCheckpoint& checkpoint) const;
  void RemoveSuperseded(Storage& storage, const std::string& base,
                        const v1::CheckpointRef& committed);

  const std::string uri_;
  const AttemptDir dir_;
  WorkerClient& client_;
  JobSession& session_;
  const TransferCheck check_;

  // Used by the thread only: what lies in the store, by path below uri_.
  std::map<std::string, std::string> stored_;  // path -> sha256
  std::string base_;                           // "" or "blocks-7/"

  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  std::optional<Staged> pending_;
  bool busy_ = false;
  int committed_blocks_ = 0;
  int offered_ = 0;
  std::jthread thread_;  // last: starts when all else is there
};

}  // namespace quantry::agent
