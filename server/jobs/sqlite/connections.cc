#include "server/jobs/sqlite/connections.h"

#include <chrono>
#include <utility>

namespace quantry::server::sqlite {
namespace {

// Bounds how long the first caller of a batch waits for the others.
constexpr size_t kMaxBatch = 256;
constexpr auto kCheckpointInterval = std::chrono::seconds(1);

void Rollback(Database& db) {
  db.ClearError();
  if (db.InTransaction()) db.Execute("ROLLBACK");
  db.ClearError();
}

}  // namespace

GroupCommitWriter::GroupCommitWriter(std::unique_ptr<Database> db)
    : db_(std::move(db)), thread_([this] { Loop(); }) {}

GroupCommitWriter::~GroupCommitWriter() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

absl::Status GroupCommitWriter::Run(const Operation& operation) {
  Pending pending{&operation, absl::OkStatus()};
  std::unique_lock lock(mutex_);
  queue_.push_back(&pending);
  work_.notify_one();
  finished_.wait(lock, [&] { return pending.done; });
  return pending.result;
}

void GroupCommitWriter::Loop() {
  while (true) {
    std::vector<Pending*> batch = TakeBatch();
    if (batch.empty()) return;
    Commit(batch);
    Finish(batch);
  }
}

std::vector<GroupCommitWriter::Pending*> GroupCommitWriter::TakeBatch() {
  std::unique_lock lock(mutex_);
  work_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
  std::vector<Pending*> batch;
  while (!queue_.empty() && batch.size() < kMaxBatch) {
    batch.push_back(queue_.front());
    queue_.pop_front();
  }
  return batch;
}

void GroupCommitWriter::Commit(const std::vector<Pending*>& batch) {
  db_->ClearError();
  db_->Execute("BEGIN IMMEDIATE");
  for (Pending* pending : batch) {
    if (!db_->InTransaction()) break;  // could not begin, or SQLite undid all
    pending->result = RunInSavepoint(*pending->operation);
  }
  absl::Status lost = db_->status();
  if (db_->InTransaction()) {
    db_->Execute("COMMIT");
    lost = db_->status();
  }
  if (lost.ok()) return;
  Rollback(*db_);
  for (Pending* pending : batch) pending->result = lost;
}

// The sticky error stays set only when the whole transaction is gone.
absl::Status GroupCommitWriter::RunInSavepoint(const Operation& operation) {
  db_->Execute("SAVEPOINT operation");
  absl::Status result = operation(*db_);
  if (!db_->status().ok()) result = db_->status();
  if (!db_->InTransaction()) return result;
  if (!result.ok()) {
    db_->ClearError();
    db_->Execute("ROLLBACK TO operation");
  }
  db_->Execute("RELEASE operation");
  return result;
}

void GroupCommitWriter::Finish(const std::vector<Pending*>& batch) {
  std::lock_guard lock(mutex_);
  for (Pending* pending : batch) pending->done = true;
  finished_.notify_all();
}

Checkpointer::Checkpointer(std::unique_ptr<Database> db)
    : db_(std::move(db)), thread_([this](std::stop_token stop) { Loop(stop); }) {}

void Checkpointer::Loop(std::stop_token stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  std::unique_lock lock(mutex);
  while (!stop.stop_requested()) {
    // A failure (disk full) leaves the log as it is: nothing is lost.
    db_->Execute("PRAGMA wal_checkpoint(PASSIVE)");
    db_->ClearError();
    stopped.wait_for(lock, stop, kCheckpointInterval, [] { return false; });
  }
}

ReaderPool::ReaderPool(std::vector<std::unique_ptr<Database>> connections)
    : connections_(std::move(connections)) {}

absl::Status ReaderPool::Run(const Operation& operation) {
  std::unique_lock lock(mutex_);
  freed_.wait(lock, [&] { return !connections_.empty(); });
  std::unique_ptr<Database> db = std::move(connections_.back());
  connections_.pop_back();
  lock.unlock();
  db->ClearError();
  db->Execute("BEGIN");
  absl::Status result = operation(*db);
  if (!db->status().ok()) result = db->status();
  Rollback(*db);
  lock.lock();
  connections_.push_back(std::move(db));
  freed_.notify_one();
  return result;
}

}  // namespace quantry::server::sqlite
