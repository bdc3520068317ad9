#include "worker/agent/checkpoint_uploader.h"

#include <filesystem>
#include <set>

#include "common/errors.h"
#include "common/log.h"

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
bool TakeFromSibling(const AttemptDir& dir, const v1::ArtifactFile& file, const std::string& target,
                     const TransferCheck& check) {
  std::error_code error;
  const fs::path job = fs::path(dir.root).parent_path();
  for (fs::directory_iterator it(job, error), end; !error && it != end; it.increment(error)) {
    if (it->path() == fs::path(dir.root)) continue;
    auto sibling = OpenStorage((it->path() / "checkpoint").native());
    if (!sibling.ok()) continue;
    const auto found = (*sibling)->Stat(file.path());
    if (!found.ok() || !*found || (*found)->size_bytes != file.size_bytes()) continue;
    const auto moved = (*sibling)->Download(file.path(), target, check);
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

}  // namespace

absl::Status RestoreCheckpoint(const v1::Lease& lease, const AttemptDir& dir,
                               const TransferCheck& check) {
  if (!lease.has_resume() || lease.resume().files().empty()) return absl::OkStatus();
  if (auto status = CheckNames(lease.resume().files()); !status.ok()) return status;
  auto storage = OpenStorage(lease.resume().uri());
  if (!storage.ok()) return storage.status();
  for (const v1::ArtifactFile& file : lease.resume().files()) {
    const std::string target = dir.checkpoint() + "/" + file.path();
    if (TakeFromSibling(dir, file, target, check)) continue;
    auto moved = (*storage)->Download(file.path(), target, check);
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
    : uri_(lease.checkpoint_uri()),
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
    const fs::path link = fs::path(staged.folder) / file.path();
    const fs::path source = fs::path(dir_.checkpoint()) / file.path();
    std::error_code error;
    fs::create_directories(link.parent_path(), error);
    fs::create_hard_link(source, link, error);
    if (error) fs::copy_file(source, link, error);
    if (error) {
      log::Warning("a checkpoint file is gone before it could be uploaded",
                   {{"job", session_.job()}, {"path", file.path()}, {"error", error.message()}});
      fs::remove_all(staged.folder, error);
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
  while (true) {
    Staged staged;
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [this] { return pending_.has_value(); })) return;
      staged = *std::exchange(pending_, std::nullopt);
      busy_ = true;
    }
    const auto status = stop.stop_requested() ? absl::CancelledError("ended") : Upload(staged);
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

bool CheckpointUploader::Conflicts(const v1::EngineCheckpoint& checkpoint) const {
  for (const v1::ArtifactFile& file : checkpoint.files()) {
    const auto found = stored_.find(base_ + file.path());
    if (found != stored_.end() && found->second != file.sha256()) return true;
  }
  return false;
}

absl::Status CheckpointUploader::SendFile(Storage& storage, const Staged& staged,
                                          const std::string& base, v1::ArtifactFile& file) {
  const std::string path = base + file.path();
  const auto found = stored_.find(path);
  if (found != stored_.end() && found->second == file.sha256()) return absl::OkStatus();
  const TransferCheck check = [this](std::int64_t bytes) {
    if (auto status = session_.CheckRunning(); !status.ok()) return status;
    return check_ ? check_(bytes) : absl::OkStatus();
  };
  auto sent = storage.Upload(staged.folder + "/" + file.path(), path, check);
  if (!sent.ok()) return sent.status();
  if (!file.sha256().empty() && file.sha256() != sent->sha256) {
    return absl::DataLossError("checkpoint file " + file.path() + " changed while it was read");
  }
  file.set_sha256(sent->sha256);
  file.set_size_bytes(sent->size_bytes);
  stored_[path] = sent->sha256;
  return absl::OkStatus();
}

absl::Status CheckpointUploader::Upload(const Staged& staged) {
  auto storage = OpenStorage(uri_);
  if (!storage.ok()) return storage.status();
  std::string base = base_;
  if (Conflicts(staged.checkpoint)) {
    base = "blocks-" + std::to_string(staged.checkpoint.blocks_done()) + "/";
  }
  v1::CommitCheckpointRequest request;
  request.set_job(session_.job());
  request.set_epoch(session_.epoch());
  v1::CheckpointRef& ref = *request.mutable_checkpoint();
  ref.set_uri(base.empty() ? uri_ : uri_ + "/" + base.substr(0, base.size() - 1));
  ref.set_blocks_done(staged.checkpoint.blocks_done());
  for (v1::ArtifactFile file : staged.checkpoint.files()) {
    if (auto status = SendFile(**storage, staged, base, file); !status.ok()) return status;
    *ref.add_files() = file;
  }
  auto status = client_.CommitCheckpoint(request, [this] { return session_.CheckRunning().ok(); });
  if (!status.ok()) return status;
  base_ = base;
  RemoveSuperseded(**storage, base, ref);
  return absl::OkStatus();
}

void CheckpointUploader::RemoveSuperseded(Storage& storage, const std::string& base,
                                          const v1::CheckpointRef& committed) {
  std::set<std::string> keep;
  for (const v1::ArtifactFile& file : committed.files()) keep.insert(base + file.path());
  for (auto it = stored_.begin(); it != stored_.end();) {
    if (keep.contains(it->first)) {
      ++it;
      continue;
    }
    if (auto status = storage.Delete(it->first); !status.ok()) {
      log::Warning("cannot remove an old checkpoint file",
                   {{"path", it->first}, {"error", status.ToString()}});
    }
    it = stored_.erase(it);
  }
}

}  // namespace quantry::agent
