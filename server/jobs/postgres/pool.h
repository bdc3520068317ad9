#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/jobs/postgres/database.h"

namespace quantry::server::postgres {

// What runs on one connection. May run more than once: whatever it did before
// was undone then.
using Operation = std::function<absl::Status(Database&)>;

// Connections, opened when needed, one at a time, and kept. A broken one is replaced: calls
// during an outage fail with UNAVAILABLE STORE_UNAVAILABLE, the first one after
// it works. Thread-safe.
class Pool {
 public:
  Pool(std::string conninfo, int size);

  // One transaction (READ COMMITTED). OK = committed and on disk, unless the
  // operation called CommitMayBeLate(). A deadlock or a key taken meanwhile
  // runs it again. UNAVAILABLE when the connection broke during COMMIT: it may
  // have happened.
  absl::Status Write(const Operation& operation);
  // Without a transaction: each statement sees its own snapshot.
  absl::Status Read(const Operation& operation);

 private:
  absl::StatusOr<std::unique_ptr<Database>> Take();
  bool MayOpen() const;
  absl::Status NoneCameFree() const;
  // Keeps it, or closes it when it is broken or has an error.
  void GiveBack(std::unique_ptr<Database> db);
  void Discard(std::unique_ptr<Database> db);
  // One try. `again` = nothing has happened and another one may work.
  absl::Status TryWrite(const Operation& operation, bool* again);
  absl::Status TryRead(const Operation& operation, bool* again);
  absl::Status Retry(const std::function<absl::Status(bool*)>& attempt);

  const std::string conninfo_;
  const int size_;
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<std::unique_ptr<Database>> idle_;
  int open_ = 0;  // idle or in use
  bool opening_ = false;
  absl::Status last_refusal_;
  MonotonicTime refused_until_{};
};

}  // namespace quantry::server::postgres
