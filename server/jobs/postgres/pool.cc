#include "server/jobs/postgres/pool.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"

namespace quantry::server::postgres {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr auto kWaitForConnection = std::chrono::seconds(5);
// After a refused connection nobody knocks again for this long.
constexpr auto kKnockAgain = milliseconds(200);
// Many signing in at once keep the server's cores from every other statement (0.3 s
// at 200 submits a second on two cores), and what is given back meanwhile serves
// most of those who wait; so the next one is opened when the one before is done
// or takes longer than this (a host that swallows packets).
constexpr auto kNextOpening = milliseconds(300);
constexpr int kAttempts = 8;

}  // namespace

Pool::Pool(Opener open, int size) : open_another_(std::move(open)), size_(size) {}

absl::Status Pool::Write(const Operation& operation) {
  return Retry([&](bool* again) { return TryWrite(operation, again); });
}

absl::Status Pool::Read(const Operation& operation) {
  return Retry([&](bool* again) { return TryRead(operation, again); });
}

absl::Status Pool::Retry(const std::function<absl::Status(bool*)>& attempt) {
  absl::Status status;
  for (int i = 0; i < kAttempts; ++i) {
    bool again = false;
    status = attempt(&again);
    if (!again) return status;
    if (i > 0) std::this_thread::sleep_for(milliseconds(1 << i));  // let the other one end
  }
  return status;
}

absl::Status Pool::TryWrite(const Operation& operation, bool* again) {
  auto taken = Take();
  if (!taken.ok()) return taken.status();
  std::unique_ptr<Database> db = *std::move(taken);
  db->Script("BEGIN");
  absl::Status result = operation(*db);
  const bool late = db->TakeLate();
  if (!db->status().ok()) {
    result = db->status();
    *again = db->failure() == Failure::kConflict || db->failure() == Failure::kConnection;
  }
  if (result.ok()) {
    db->Script(late ? "SET LOCAL synchronous_commit = off; COMMIT" : "COMMIT");
    result = db->status();
  } else if (db->failure() != Failure::kConnection) {
    db->ClearError();
    db->Script("ROLLBACK");
  }
  GiveBack(std::move(db));
  return result;
}

absl::Status Pool::TryRead(const Operation& operation, bool* again) {
  auto taken = Take();
  if (!taken.ok()) return taken.status();
  std::unique_ptr<Database> db = *std::move(taken);
  absl::Status result = operation(*db);
  if (!db->status().ok()) result = db->status();
  *again = db->failure() == Failure::kConnection;
  if (!*again) db->ClearError();
  GiveBack(std::move(db));
  return result;
}

absl::StatusOr<std::unique_ptr<Database>> Pool::Take() {
  std::unique_lock lock(mutex_);
  const MonotonicTime deadline = steady_clock::now() + kWaitForConnection;
  while (idle_.empty()) {
    const MonotonicTime now = steady_clock::now();
    if (open_ == 0 && now < refused_until_) return last_refusal_;
    if (now >= deadline) return NoneCameFree();
    const MonotonicTime next = NextOpening();
    if (now < next) {
      freed_.wait_until(lock, std::min(deadline, next));
    } else if (auto db = OpenAnother(lock)) {
      return db;
    }
  }
  std::unique_ptr<Database> db = std::move(idle_.back());
  idle_.pop_back();
  return db;
}

MonotonicTime Pool::NextOpening() const {
  if (open_ + opening_ >= size_) return MonotonicTime::max();
  if (opening_ == 0) return refused_until_;
  return std::max(refused_until_, last_opening_ + kNextOpening);
}

std::unique_ptr<Database> Pool::OpenAnother(std::unique_lock<std::mutex>& lock) {
  ++opening_;
  last_opening_ = steady_clock::now();
  lock.unlock();
  auto db = open_another_();
  lock.lock();
  --opening_;
  last_refusal_ = db.status();
  if (db.ok()) {
    ++open_;
  } else {
    refused_until_ = steady_clock::now() + kKnockAgain;
  }
  freed_.notify_all();
  return db.ok() ? *std::move(db) : nullptr;
}

absl::Status Pool::NoneCameFree() const {
  if (!last_refusal_.ok()) return last_refusal_;
  if (open_ < size_) {
    return MakeError(Reason::kStoreUnavailable,
                     absl::StrCat("PostgreSQL has not opened a connection within ",
                                  kWaitForConnection.count(), " s; retry"));
  }
  return MakeError(Reason::kStoreUnavailable,
                   absl::StrCat("all ", size_,
                                " connections to PostgreSQL are busy; retry, or raise "
                                "--job-store-connections"));
}

void Pool::GiveBack(std::unique_ptr<Database> db) {
  if (!db->IsOpen() || !db->status().ok()) return Discard(std::move(db));
  std::lock_guard lock(mutex_);
  idle_.push_back(std::move(db));
  freed_.notify_one();
}

// What broke one connection has most likely broken all of them.
void Pool::Discard(std::unique_ptr<Database> db) {
  std::vector<std::unique_ptr<Database>> closed;
  std::lock_guard lock(mutex_);
  closed.swap(idle_);
  closed.push_back(std::move(db));
  open_ -= static_cast<int>(closed.size());
  freed_.notify_all();
}

}  // namespace quantry::server::postgres
