#include "common/clock.h"

#include <gtest/gtest.h>

namespace quantry {
namespace {

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

TEST(ClockTest, MicrosecondsRoundTrip) {
  Time now = SystemClock().Now();
  EXPECT_EQ(FromUnixMicros(ToUnixMicros(now)), now);
  EXPECT_GT(ToUnixMicros(now), int64_t{1'700'000'000'000'000});
}

}  // namespace
}  // namespace quantry
