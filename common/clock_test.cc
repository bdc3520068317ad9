#include "common/clock.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <ctime>

static std::atomic<int64_t> slept_s{0};

// Before libc's: what a machine that was suspended for so long says.
extern "C" int clock_gettime(clockid_t id, timespec* now) noexcept {
  const auto result = static_cast<int>(syscall(SYS_clock_gettime, id, now));
  if (result == 0 && id == CLOCK_BOOTTIME) now->tv_sec += slept_s;
  return result;
}

namespace quantry {
namespace {

using std::chrono::hours;
using std::chrono::seconds;

TEST(FakeClockTest, MovesOnlyWhenTold) {
  FakeClock clock;
  Time start = clock.Now();
  MonotonicTime monotonic = clock.Monotonic();
  EXPECT_EQ(clock.Now(), start);
  clock.Advance(seconds(3));
  EXPECT_EQ(clock.Now() - start, seconds(3));
  EXPECT_EQ(clock.Monotonic() - monotonic, seconds(3));
}

TEST(FollowingClockTest, IsTheSystemsUntilItFollows) {
  FollowingClock clock;
  EXPECT_LT(clock.Now() - SystemClock().Now(), seconds(1));
  clock.Follow(FromUnixMicros(5'000'000), clock.Monotonic());
  EXPECT_GE(clock.Now(), FromUnixMicros(5'000'000));
  EXPECT_LT(clock.Now(), FromUnixMicros(65'000'000));
  clock.Follow(FromUnixMicros(2'000'000'000'000'000), clock.Monotonic());
  EXPECT_GE(clock.Now(), FromUnixMicros(2'000'000'000'000'000));
}

TEST(FollowingClockTest, SleepsOfTheMachineCount) {
  FollowingClock clock;
  const Time start = FromUnixMicros(5'000'000);
  clock.Follow(start, clock.Monotonic());
  slept_s = 8 * 3600;
  EXPECT_GE(clock.Now(), start + hours(8));
  EXPECT_LT(clock.Now(), start + hours(8) + seconds(60));
  slept_s = 0;
}

TEST(ClockTest, MicrosecondsRoundTrip) {
  Time now = SystemClock().Now();
  EXPECT_EQ(FromUnixMicros(ToUnixMicros(now)), now);
  EXPECT_GT(ToUnixMicros(now), int64_t{1'700'000'000'000'000});
}

}  // namespace
}  // namespace quantry
