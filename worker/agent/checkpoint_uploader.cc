#include "worker/agent/checkpoint_uploader.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>

#include "common/digest.h"
#include "common/errors.h"
#include "common/log.h"
#include "common/trace_context.h"
#include "worker/agent/engine_file.h"
#include "worker/agent/name_attempt.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;

absl::Status CheckNames(const google::protobuf::RepeatedPtrField<v1::ArtifactFile>& files) {
  for (const v1::ArtifactFile& file : files) {
    if (auto status = CheckRelativePath(file.path()); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// Takes one file from another attempt of the same job on this machine.
bool TakeFromSibling(const AttemptDir& dir, const v1::ArtifactFile& file,
                     const TransferCheck& check) {
  std::error_code error;
  auto here = OpenStorage(dir.checkpoint());
  if (!here.ok()) return false;
  const fs::path job = fs::path(dir.root).parent_path();
  for (fs::directory_iterator it(job, error), end; !error && it != end; it.increment(error)) {
    if (it->path() == fs::path(dir.root)) continue;
    const auto found = EngineFile::Open((it->path() / "checkpoint").native(), file.path());
    if (!found.ok() || found->size_bytes() != file.size_bytes()) continue;
    const auto moved = (*here)->Upload(found->path(), file.path(), check);
    if (moved.ok() && moved->sha256 == file.sha256()) return true;
  }
  return false;
}

// Every regular file below `folder`, as relative paths.
std::vector<std::string> FilesBelow(const std::string& folder) {
  std::vector<std::string> paths;
  auto storage = OpenStorage(folder);
  if (!storage.ok()) return paths;
  const auto files = (*storage)->List("");
  if (!files.ok()) return paths;
  for (const StoredFile& file : *files) paths.push_back(file.path);
  return paths;
}

// Links `name` below `folder`, where the engine writes, to `target`, where it does not; a copy
// where the file system knows no links.
absl::Status SetAside(const std::string& folder, const std::string& name, const fs::path& target) {
  const auto file = EngineFile::Open(folder, name);
  if (!file.ok()) return file.status();
  std::error_code error;
  fs::create_directories(target.parent_path(), error);
  if (linkat(AT_FDCWD, file->path().c_str(), AT_FDCWD, target.c_str(), AT_SYMLINK_FOLLOW) == 0) {
    return absl::OkStatus();
  }
  fs::copy_file(file->path(), target, error);
  return error ? absl::InternalError(error.message()) : absl::OkStatus();
}

void RemoveTree(const std::string& uri) {
  auto storage = OpenStorage(uri);
  const auto status = storage.ok() ? (*storage)->DeleteTree("") : storage.status();
  if (!status.ok()) {
    log::Warning("cannot remove old checkpoints", {{"uri", uri}, {"error", status.ToString()}});
  }
}

}  // namespace

std::string StoredName(const v1::ArtifactFile& file) {
  return file.path() + "." + file.sha256().substr(0, 16);
}

void RemoveStoredCheckpoints(const v1::Lease& lease) {
  for (const std::string& uri : {lease.checkpoint_uri(), lease.resume().uri()}) {
    if (!uri.empty()) RemoveTree(uri);
  }
}

absl::Status RestoreCheckpoint(const v1::Lease& lease, const AttemptDir& dir,
                               const TransferCheck& check) {
  if (!lease.has_resume() || lease.resume().files().empty()) return absl::OkStatus();
  if (auto status = CheckNames(lease.resume().files()); !status.ok()) return status;
  auto storage = OpenStorage(lease.resume().uri());
  if (!storage.ok()) return storage.status();
  for (const v1::ArtifactFile& file : lease.resume().files()) {
    const std::string target = dir.checkpoint() + "/" + file.path();
    if (TakeFromSibling(dir, file, check)) continue;
    auto moved = (*storage)->Download(StoredName(file), target, check);
    if (!moved.ok()) return moved.status();
    if (moved->sha256 != file.sha256()) {
      return absl::DataLossError("checkpoint file " + file.path() + " should have sha256 " +
                                 file.sha256() + ", the store holds " + moved->sha256);
    }
  }
  return absl::OkStatus();
}

CheckpointUploader::CheckpointUploader(const v1::Lease& lease, const AttemptDir& dir,
                                       WorkerClient& client, JobSession& session,
                                       TransferCheck check)
    : trace_id_(TraceIdOf(lease.traceparent())),
      uri_(lease.checkpoint_uri()),
      resumed_uri_(lease.resume().uri()),
      dir_(dir),
      client_(client),
      session_(session),
      check_(std::move(check)),
      committed_blocks_(lease.resume().blocks_done()),
      thread_([this](std::stop_token stop) { Run(stop); }) {}

CheckpointUploader::~CheckpointUploader() {
  thread_.request_stop();
  thread_.join();
}

void CheckpointUploader::Offer(const v1::EngineCheckpoint& checkpoint) {
  if (uri_.empty()) return;
  Staged staged{dir_.staged() + "/" + std::to_string(offered_++), checkpoint};
  if (staged.checkpoint.files().empty()) {
    for (const std::string& path : FilesBelow(dir_.checkpoint())) {
      staged.checkpoint.add_files()->set_path(path);
    }
  }
  if (!CheckNames(staged.checkpoint.files()).ok()) {
    log::Warning("the engine named checkpoint files outside its folder",
                 {{"job", session_.job()}, {"epoch", session_.epoch()}});
    return;
  }
  for (const v1::ArtifactFile& file : staged.checkpoint.files()) {
    const auto aside =
        SetAside(dir_.checkpoint(), file.path(), fs::path(staged.folder) / file.path());
    if (!aside.ok()) {
      // Mostly the engine is ahead of us: its next checkpoint comes.
      log::Info("a checkpoint cannot be taken or was superseded before it was uploaded",
                {{"job", session_.job()}, {"path", file.path()}, {"error", aside.ToString()}});
      std::error_code ignored;
      fs::remove_all(staged.folder, ignored);
      return;
    }
  }
  const std::lock_guard lock(mutex_);
  std::error_code ignored;
  if (pending_) fs::remove_all(pending_->folder, ignored);
  pending_ = std::move(staged);
  changed_.notify_all();
}

void CheckpointUploader::Flush(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [this] { return !pending_ && !busy_; });
}

int CheckpointUploader::committed_blocks() const {
  const std::lock_guard lock(mutex_);
  return committed_blocks_;
}

void CheckpointUploader::Run(std::stop_token stop) {
  const log::TraceScope trace(trace_id_);
  while (true) {
    Staged staged;
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [this] { return pending_.has_value(); })) return;
      staged = *std::exchange(pending_, std::nullopt);
      busy_ = true;
    }
    const auto status = Upload(staged, stop);
    if (HasReason(status, Reason::kLeaseLost)) session_.Stop(StopReason::kLost);
    if (!status.ok() && !absl::IsCancelled(status)) {
      log::Warning("checkpoint was not committed", {{"job", session_.job()},
                                                    {"epoch", session_.epoch()},
                                                    {"blocks", staged.checkpoint.blocks_done()},
                                                    {"error", status.ToString()}});
    }
    std::error_code ignored;
    fs::remove_all(staged.folder, ignored);
    const std::lock_guard lock(mutex_);
    busy_ = false;
    if (status.ok()) committed_blocks_ = staged.checkpoint.blocks_done();
    changed_.notify_all();
  }
}

absl::Status CheckpointUploader::CheckGoingOn(const std::stop_token& stop) const {
  return stop.stop_requested() ? absl::CancelledError("the engine has ended")
                               : session_.CheckRunning();
}

absl::Status CheckpointUploader::SendFile(Storage& storage, const Staged& staged,
                                          v1::ArtifactFile& file, const std::stop_token& stop) {
  const std::string local = staged.folder + "/" + file.path();
  if (file.sha256().empty()) {
    const auto digest = Sha256File(local);
    if (!digest.ok()) return digest.status();
    file.set_sha256(digest->sha256);
    file.set_size_bytes(digest->size_bytes);
  }
  const std::string name = StoredName(file);
  if (stored_.contains(name)) return absl::OkStatus();
  const TransferCheck check = [&](std::int64_t bytes) {
    if (auto status = CheckGoingOn(stop); !status.ok()) return status;
    return check_ ? check_(bytes) : absl::OkStatus();
  };
  auto sent = storage.Upload(local, name, check);
  if (!sent.ok()) return sent.status();
  if (file.sha256() != sent->sha256) {
    return absl::DataLossError("checkpoint file " + file.path() + " changed while it was read");
  }
  file.set_size_bytes(sent->size_bytes);
  stored_.insert(name);
  return absl::OkStatus();
}

absl::Status CheckpointUploader::Upload(const Staged& staged, const std::stop_token& stop) {
  if (auto status = CheckGoingOn(stop); !status.ok()) return status;
  auto storage = OpenStorage(uri_);
  if (!storage.ok()) return storage.status();
  v1::CommitCheckpointRequest request;
  NameAttempt(session_, &request);
  v1::CheckpointRef& ref = *request.mutable_checkpoint();
  ref.set_uri(uri_);
  ref.set_blocks_done(staged.checkpoint.blocks_done());
  ref.set_sequence(++sequence_);
  for (v1::ArtifactFile file : staged.checkpoint.files()) {
    if (auto status = SendFile(**storage, staged, file, stop); !status.ok()) return status;
    *ref.add_files() = file;
  }
  // The server stores them first, so that the history tells what led here.
  const v1::JobBeat pending = session_.PendingEvents();
  request.set_event_offset(pending.event_offset());
  *request.mutable_events() = pending.events();
  auto status = client_.CommitCheckpoint(request, [&] { return CheckGoingOn(stop).ok(); });
  if (!status.ok()) return status;
  RemoveSuperseded(**storage, ref);
  return absl::OkStatus();
}

void CheckpointUploader::RemoveSuperseded(Storage& storage, const v1::CheckpointRef& committed) {
  std::set<std::string> keep;
  for (const v1::ArtifactFile& file : committed.files()) keep.insert(StoredName(file));
  for (auto it = stored_.begin(); it != stored_.end();) {
    if (keep.contains(*it)) {
      ++it;
      continue;
    }
    if (auto status = storage.Delete(*it); !status.ok()) {
      log::Warning("cannot remove an old checkpoint file",
                   {{"path", *it}, {"error", status.ToString()}});
    }
    it = stored_.erase(it);
  }
  const std::string resumed = std::exchange(resumed_uri_, "");
  if (!resumed.empty() && resumed != uri_) RemoveTree(resumed);
}

}  // namespace quantry::agent
