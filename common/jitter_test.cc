#include "common/jitter.h"

#include <gtest/gtest.h>

#include <set>

namespace quantry {
namespace {

using std::chrono::milliseconds;

TEST(RandomTime, TakesEveryTimeInItsRangeAndNoOther) {
  std::set<milliseconds> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(RandomTime(milliseconds(2), milliseconds(4)));
  EXPECT_EQ(seen, (std::set{milliseconds(2), milliseconds(3), milliseconds(4)}));
  EXPECT_EQ(RandomTime(milliseconds(0), milliseconds(0)), milliseconds(0));
}

}  // namespace
}  // namespace quantry
