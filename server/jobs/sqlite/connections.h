#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "server/jobs/sqlite/database.h"

namespace quantry::server::sqlite {

// What runs inside a transaction. OK commits, anything else undoes just this
// operation.
using Operation = std::function<absl::Status(Database&)>;

// The one thread that writes. Operations queued while a commit is on its way
// to disk share the next one: a transaction of savepoints. Run() returns when
// that commit is durable. Thread-safe.
class GroupCommitWriter {
 public:
  explicit GroupCommitWriter(std::unique_ptr<Database> db);
  // Finishes what is queued.
  ~GroupCommitWriter();

  absl::Status Run(const Operation& operation);

 private:
  struct Pending {
    const Operation* operation;
    absl::Status result;
    bool done = false;
  };

  void Loop();
  std::vector<Pending*> TakeBatch();
  // One transaction; every result is set.
  void Commit(const std::vector<Pending*>& batch);
  absl::Status RunInSavepoint(const Operation& operation);
  void Finish(const std::vector<Pending*>& batch);

  std::unique_ptr<Database> db_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable finished_;
  std::deque<Pending*> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

// Moves the write-ahead log into the database file once a second, on its own
// connection and without blocking anyone, so that no commit has to wait for
// it. Under load that never lets up the log still grows; the writer then
// moves it itself (wal_autocheckpoint in database.cc).
class Checkpointer {
 public:
  explicit Checkpointer(std::unique_ptr<Database> db);

 private:
  void Loop(std::stop_token stop);

  std::unique_ptr<Database> db_;
  std::jthread thread_;  // last: stops before the connection closes
};

// Connections for readers; each Run() sees one snapshot. Waits for a free
// connection. Thread-safe.
class ReaderPool {
 public:
  explicit ReaderPool(std::vector<std::unique_ptr<Database>> connections);

  absl::Status Run(const Operation& operation);

 private:
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<std::unique_ptr<Database>> connections_;
};

}  // namespace quantry::server::sqlite
