#include "common/checked.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

namespace quantry {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

TEST(CheckedTest, Limits) {
  EXPECT_EQ(CheckedAdd(kMax - 1, int64_t{1}), kMax);
  EXPECT_EQ(CheckedAdd(kMax, int64_t{1}), std::nullopt);
  EXPECT_EQ(CheckedSub(kMin, int64_t{1}), std::nullopt);
  EXPECT_EQ(CheckedSub(uint32_t{1}, uint32_t{2}), std::nullopt);
  EXPECT_EQ(CheckedMul(int64_t{1} << 31, int64_t{1} << 31), int64_t{1} << 62);
  EXPECT_EQ(CheckedMul(int64_t{1} << 32, int64_t{1} << 31), std::nullopt);
  EXPECT_EQ(CheckedMul(kMin, int64_t{-1}), std::nullopt);
  EXPECT_EQ(CheckedMul(uint64_t{0}, std::numeric_limits<uint64_t>::max()), uint64_t{0});
}

}  // namespace
}  // namespace quantry
