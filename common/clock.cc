#include "common/clock.h"

namespace quantry {
namespace {

constexpr int64_t kFakeEpochSeconds = 1'000'000'000;

}  // namespace

Time SystemClock::Now() const {
  return std::chrono::time_point_cast<Duration>(std::chrono::system_clock::now());
}

MonotonicTime SystemClock::Monotonic() const { return std::chrono::steady_clock::now(); }

Time FakeClock::Now() const {
  return Time(std::chrono::seconds(kFakeEpochSeconds)) + Duration(elapsed_us_.load());
}

MonotonicTime FakeClock::Monotonic() const { return MonotonicTime(Duration(elapsed_us_.load())); }

void FakeClock::Advance(Duration by) { elapsed_us_.fetch_add(by.count()); }

}  // namespace quantry
