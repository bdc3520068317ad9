#include "common/clock.h"

#include <ctime>

namespace quantry {
namespace {

constexpr int64_t kFakeEpochSeconds = 1'000'000'000;

// Suspends of the machine included, which the monotonic clock leaves out: a
// server that slept for a night must not lag behind by a night.
int64_t SinceBootMicros() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return int64_t{now.tv_sec} * 1'000'000 + now.tv_nsec / 1000;
}

}  // namespace

Time SystemClock::Now() const {
  return std::chrono::time_point_cast<Duration>(std::chrono::system_clock::now());
}

MonotonicTime SystemClock::Monotonic() const { return std::chrono::steady_clock::now(); }

Time FollowingClock::Now() const {
  const int64_t ahead = ahead_us_.load();
  if (ahead == kSystem) return SystemClock().Now();
  return FromUnixMicros(SinceBootMicros() + ahead);
}

MonotonicTime FollowingClock::Monotonic() const { return std::chrono::steady_clock::now(); }

void FollowingClock::Follow(Time there, MonotonicTime here) {
  const auto since = std::chrono::duration_cast<Duration>(Monotonic() - here);
  ahead_us_.store(ToUnixMicros(there) + since.count() - SinceBootMicros());
}

Time FakeClock::Now() const {
  return Time(std::chrono::seconds(kFakeEpochSeconds)) + Duration(elapsed_us_.load());
}

MonotonicTime FakeClock::Monotonic() const { return MonotonicTime(Duration(elapsed_us_.load())); }

void FakeClock::Advance(Duration by) { elapsed_us_.fetch_add(by.count()); }

}  // namespace quantry
