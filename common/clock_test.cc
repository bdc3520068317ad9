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

TEST(ClockTest, MicrosecondsRoundTrip) {
  Time now = SystemClock().Now();
  EXPECT_EQ(FromUnixMicros(ToUnixMicros(now)), now);
  EXPECT_GT(ToUnixMicros(now), int64_t{1'700'000'000'000'000});
}

}  // namespace
}  // namespace quantry
