#include "worker/engine/reconstruct/over_shares.h"

#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>
#include <string>

namespace quantry::engine {
namespace {

// Three threads, whatever the machine has.
class OverSharesTest : public ::testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(3); }
  void TearDown() override { at::set_num_threads(before_); }

  static std::vector<int64_t> Windows(int64_t count) {
    std::vector<int64_t> windows(count);
    std::iota(windows.begin(), windows.end(), 10);
    return windows;
  }

  const int before_ = at::get_num_threads();
};

// What each part was, in the order they were added.
struct Seen {
  int64_t sum = 0;
  std::vector<std::vector<int64_t>> parts;
  std::vector<bool> in_parallel;
  std::vector<bool> with_gradients;
};

Seen SeenOf(const std::vector<int64_t>& windows) {
  return {std::accumulate(windows.begin(), windows.end(), int64_t{0}),
          {windows},
          {at::in_parallel_region()},
          {c10::GradMode::is_enabled()}};
}

void AddSeen(Seen& to, const Seen& from) {
  to.sum += from.sum;
  to.parts.insert(to.parts.end(), from.parts.begin(), from.parts.end());
  to.in_parallel.insert(to.in_parallel.end(), from.in_parallel.begin(), from.in_parallel.end());
  to.with_gradients.insert(to.with_gradients.end(), from.with_gradients.begin(),
                           from.with_gradients.end());
}

using Parts = std::vector<std::vector<int64_t>>;

TEST_F(OverSharesTest, EqualSharesSideBySideAreAddedInOrder) {
  const Seen seen = OverShares(at::kCPU, Windows(6), SeenOf, AddSeen);
  EXPECT_EQ(seen.parts, (Parts{{10, 11}, {12, 13}, {14, 15}}));
  EXPECT_EQ(seen.sum, 75);
  EXPECT_EQ(seen.in_parallel, std::vector<bool>(3, true));
}

TEST_F(OverSharesTest, WhatDoesNotDivideIsOnePart) {
  const Seen seen = OverShares(at::kCPU, Windows(7), SeenOf, AddSeen);
  EXPECT_EQ(seen.parts, Parts{Windows(7)});
  EXPECT_EQ(seen.sum, 91);
  EXPECT_EQ(seen.in_parallel, std::vector<bool>(1, false));
}

TEST_F(OverSharesTest, AnotherDeviceTakesAllAtOnce) {
  EXPECT_EQ(OverShares(at::kCUDA, Windows(6), SeenOf, AddSeen).parts, Parts{Windows(6)});
}

TEST_F(OverSharesTest, WhatAPartThrowsArrives) {
  for (const int64_t thrower : {10, 12, 14}) {
    const auto part = [&](const std::vector<int64_t>& windows) {
      if (windows[0] == thrower) throw std::runtime_error(std::to_string(thrower));
      return SeenOf(windows);
    };
    try {
      OverShares(at::kCPU, Windows(6), part, AddSeen);
      FAIL() << thrower;
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(error.what(), std::to_string(thrower));
    }
  }
}

TEST_F(OverSharesTest, PartsRecordGradientsAsTheCallerDoes) {
  for (const bool wanted : {false, true}) {
    const c10::AutoGradMode mode(wanted);
    const Seen seen = OverShares(at::kCPU, Windows(6), SeenOf, AddSeen);
    EXPECT_EQ(seen.with_gradients, std::vector<bool>(3, wanted));
    EXPECT_EQ(c10::GradMode::is_enabled(), wanted);
  }
}

}  // namespace
}  // namespace quantry::engine
