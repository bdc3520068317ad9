#include "worker/engine/base/random.h"

#include <gtest/gtest.h>

#include <array>

namespace quantry::engine {
namespace {

TEST(RandomTest, FollowsThePublishedSequence) {
  Random random(1234567);
  EXPECT_EQ(random.Next(), 6457827717110365317ull);
  EXPECT_EQ(random.Next(), 3203168211198807973ull);
  EXPECT_EQ(random.Next(), 9817491932198370423ull);
}

TEST(RandomTest, BelowStaysBelowAndCoversEverything) {
  Random random(7);
  std::array<int, 5> seen = {};
  for (int i = 0; i < 5000; ++i) seen.at(random.Below(5))++;
  for (const int count : seen) EXPECT_NEAR(count, 1000, 150);
}

}  // namespace
}  // namespace quantry::engine
