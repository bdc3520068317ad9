#include "worker/engine/base/strings.h"

#include <gtest/gtest.h>

#include <vector>

namespace quantry::engine {
namespace {

TEST(StringsTest, JoinCutsLongLists) {
  EXPECT_EQ(Join(std::vector<int>{}), "");
  EXPECT_EQ(Join(std::vector<int>{1, 2}), "1, 2");
  EXPECT_EQ(Join(std::vector<int>{1, 2, 3, 4}, 2), "1, 2, and 2 more");
}

TEST(StringsTest, PrintableEscapesAndCuts) {
  EXPECT_EQ(Printable("a\nb\xff"), "a\\x0ab\\xff");
  EXPECT_EQ(Printable("abcdef", 3), "abc...");
}

TEST(StringsTest, PrintedIsOneNumber) {
  EXPECT_EQ(Printed("%.1f MB", 1.25), "1.2 MB");
  EXPECT_EQ(Printed("%.0f", 1e300).size(), 63U);
}

}  // namespace
}  // namespace quantry::engine
