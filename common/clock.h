#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

// Time comes in as an argument everywhere; only `main` and the outermost loops
// ask a Clock. Resolution: microseconds, as stored in the database.
namespace quantry {

using Duration = std::chrono::microseconds;
using Time = std::chrono::time_point<std::chrono::system_clock, Duration>;
using MonotonicTime = std::chrono::steady_clock::time_point;

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Wall clock: time stamps, and leases in the process that owns the store.
  virtual Time Now() const = 0;
  // Never steps back: intervals, and leases as a worker counts them.
  virtual MonotonicTime Monotonic() const = 0;
};

class SystemClock : public Clock {
 public:
  Time Now() const override;
  MonotonicTime Monotonic() const override;
};

// The system's clock until Follow() is called; from then on a reading of a wall
// clock (a database's; this machine's at the start), carried on by the time since
// boot, so that steps of this machine's wall clock do not matter.
class FollowingClock : public Clock {
 public:
  Time Now() const override;
  MonotonicTime Monotonic() const override;
  // The other clock stood at `there` when this monotonic clock stood at `here`.
  void Follow(Time there, MonotonicTime here);

 private:
  static constexpr int64_t kSystem = INT64_MIN;
  std::atomic<int64_t> ahead_us_{kSystem};  // of the time since boot
};

// Stands still until told otherwise. Starts at 2001-09-09T01:46:40Z.
class FakeClock : public Clock {
 public:
  Time Now() const override;
  MonotonicTime Monotonic() const override;
  void Advance(Duration by);

 private:
  std::atomic<Duration::rep> elapsed_us_{0};
};

inline int64_t ToUnixMicros(Time time) { return time.time_since_epoch().count(); }
inline Time FromUnixMicros(int64_t micros) { return Time(Duration(micros)); }

}  // namespace quantry
