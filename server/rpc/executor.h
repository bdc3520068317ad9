// Threads for work that may block (the store waits for fsync, disks are slow),
// so that gRPC's own threads never do. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "common/clock.h"

namespace quantry::server {

class Executor {
 public:
  using Task = std::function<void()>;

  // `queue_limit` bounds what Submit accepts while all threads are busy.
  Executor(int threads, size_t queue_limit);
  // Runs what is queued, then joins.
  ~Executor();

  // false when the queue is full: tell the caller to come back later.
  bool Submit(Task task);
  // Always accepts. For continuations whose number is bounded otherwise.
  void Post(Task task);

 private:
  void Loop();

  const size_t queue_limit_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Task> tasks_;  // guarded by mutex_
  bool stopping_ = false;   // guarded by mutex_
  std::vector<std::thread> threads_;
};

// Runs callbacks at a time, on one thread of its own; they must be quick. What
// is pending at destruction is dropped. Thread-safe.
class Timer {
 public:
  // Names one pending callback; unique in a process's life, never 0.
  struct Handle {
    MonotonicTime when{};
    std::uint64_t id = 0;
    auto operator<=>(const Handle&) const = default;  // NOLINT(modernize-use-nullptr): none here
  };

  Timer();
  ~Timer();
  Handle At(MonotonicTime when, std::function<void()> callback);
  // The callback may be running, or have run; later it never starts.
  void Cancel(const Handle& handle);

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::map<Handle, std::function<void()>> pending_;  // guarded by mutex_
  std::uint64_t last_id_ = 0;                        // guarded by mutex_
  bool stopping_ = false;                            // guarded by mutex_
  std::thread thread_;
};

// A step that reacts to hints: Kick() asks for one more run of it on the
// executor; runs never overlap, and kicks during a run merge into one more
// run. After Stop() no further run starts. Kicks may outlive whatever the step
// points at, as long as Stop() was called before that went away.
class SerialTask : public std::enable_shared_from_this<SerialTask> {
 public:
  SerialTask(Executor* executor, std::function<void()> step)
      : executor_(executor), step_(std::move(step)) {}
  void Kick();
  // Only from inside the step.
  void Stop();
  // Kicks at `when`, once, in place of an earlier KickAt. Only from inside the
  // step.
  void KickAt(Timer* timer, MonotonicTime when);

 private:
  void Run();

  Timer* alarm_timer_ = nullptr;  // the step's own, like alarm_
  Timer::Handle alarm_;
  Executor* const executor_;
  const std::function<void()> step_;
  std::mutex mutex_;
  bool scheduled_ = false;  // a run is queued or going on; guarded by mutex_
  bool again_ = false;      // guarded by mutex_
  bool stopped_ = false;    // guarded by mutex_
};

// The tasks of open streams, to wake them all when the server drains.
// Thread-safe.
class StreamRegistry {
 public:
  void Add(const std::shared_ptr<SerialTask>& task);
  void Remove(const SerialTask* task);
  void KickAll();

 private:
  std::mutex mutex_;
  std::map<const SerialTask*, std::weak_ptr<SerialTask>> tasks_;  // guarded by mutex_
};

}  // namespace quantry::server
