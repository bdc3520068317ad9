#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>

namespace quantry::cli {

// Turns Ctrl-C and SIGTERM into a call that cancels what is in flight. The first
// signal fires; a second one ends the process at once. Make it before any other
// thread: it blocks the signals in the whole process and takes them with a
// thread of its own. Thread-safe.
class Interrupter {
 public:
  Interrupter();
  ~Interrupter();
  Interrupter(const Interrupter&) = delete;
  Interrupter& operator=(const Interrupter&) = delete;

  // 0, or the number of the signal that came.
  int fired() const;

  // Sleeps until `time` has passed or a signal came.
  void SleepFor(std::chrono::milliseconds time);

  // Runs `action` when a signal comes (at once if it came before) for as long as
  // the returned guard lives. One guard at a time.
  class Guard {
   public:
    Guard(Interrupter* interrupter, std::function<void()> action);
    ~Guard();
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    Interrupter* const interrupter_;  // may be null: nothing to guard
  };

  // What the signal thread does; public for tests.
  void Fire(int signal_number);

 private:
  void Listen(std::stop_token stop);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int fired_ = 0;
  std::function<void()> action_;
  std::jthread thread_;
};

}  // namespace quantry::cli
