#include "common/doubling_wait.h"

#include <gtest/gtest.h>

namespace quantry {
namespace {

TEST(DoublingWaitTest, GrowsToTheLongestAndStartsAgain) {
  using std::chrono::milliseconds;
  DoublingWait wait(milliseconds(100), milliseconds(300));
  for (const int wanted : {100, 200, 300, 300}) EXPECT_EQ(wait.Next(), milliseconds(wanted));
  wait.Reset();
  EXPECT_EQ(wait.Next(), milliseconds(100));
}

}  // namespace
}  // namespace quantry
