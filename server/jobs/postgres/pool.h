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

// At most `size` connections, opened when needed and kept. A broken one is replaced.
// A call takes an idle one or, when none comes free, opens another; an opening
// that is refused or hangs delays only the call that tried it, as long as other
// connections are there. Without any, calls fail with UNAVAILABLE
// STORE_UNAVAILABLE, and the first one after the outage works. Thread-safe.
class Pool {
 public:
  using Opener = std::function<absl::StatusOr<std::unique_ptr<Database>>()>;
  // `open` is called by several threads.
  Pool(Opener open, int size);

  // One transaction (READ COMMITTED). OK = committed and on disk, unless the
  // operation called CommitMayBeLate(). A deadlock or a key taken meanwhile
  // runs it again. UNAVAILABLE when the connection broke during COMMIT: it may
  // have happened.
  absl::Status Write(const Operation& operation);
  // Without a transaction: each statement sees its own snapshot.
  absl::Status Read(const Operation& operation);

 private:
  absl::StatusOr<std::unique_ptr<Database>> Take();
  // When the next connection may be opened; MonotonicTime::max() = the pool is full.
  MonotonicTime NextOpening() const;
  // Lets go of `lock` meanwhile. Null = refused, see last_refusal_.
  std::unique_ptr<Database> OpenAnother(std::unique_lock<std::mutex>& lock);
  absl::Status NoneCameFree() const;
  // Keeps it, or closes it when it is broken or has an error.
  void GiveBack(std::unique_ptr<Database> db);
  void Discard(std::unique_ptr<Database> db);
  // One try. `again` = nothing has happened and another one may work.
  absl::Status TryWrite(const Operation& operation, bool* again);
  absl::Status TryRead(const Operation& operation, bool* again);
  absl::Status Retry(const std::function<absl::Status(bool*)>& attempt);

  const Opener open_another_;
  const int size_;
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<std::unique_ptr<Database>> idle_;
  int open_ = 0;  // idle or in use
  int opening_ = 0;
  MonotonicTime last_opening_{};
  absl::Status last_refusal_;  // OK = the newest opening worked
  MonotonicTime refused_until_{};
};

}  // namespace quantry::server::postgres
