#include "common/clock.h"

namespace quantry {
namespace {

constexpr int64_t kFakeEpochSeconds = 1'000'000'000;

}  // namespace

Time SystemClock::Now() const {
  return std::chrono::time_point_cast<Duration>(std::chrono::system_clock::now());
}

MonotonicTime SystemClock::Monotonic() const { return std::chrono::steady_clock::now(); }

Time FollowingClock::Now() const {
  const int64_t ahead = ahead_us_.load();
  if (ahead == kSystem) return SystemClock().Now();
  return FromUnixMicros(
      std::chrono::duration_cast<Duration>(Monotonic().time_since_epoch()).count() + ahead);
}

MonotonicTime FollowingClock::Monotonic() const { return std::chrono::steady_clock::now(); }

void FollowingClock::Follow(Time there, MonotonicTime here) {
  ahead_us_.store(ToUnixMicros(there) -
                  std::chrono::duration_cast<Duration>(here.time_since_epoch()).count());
}

Time FakeClock::Now() const {
  return Time(std::chrono::seconds(kFakeEpochSeconds)) + Duration(elapsed_us_.load());
}

MonotonicTime FakeClock::Monotonic() const { return MonotonicTime(Duration(elapsed_us_.load())); }

void FakeClock::Advance(Duration by) { elapsed_us_.fetch_add(by.count()); }

}  // namespace quantry
