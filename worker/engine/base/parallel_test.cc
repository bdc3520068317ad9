#include "worker/engine/base/parallel.h"

#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "worker/engine/testing/threads.h"

namespace quantry::engine {
namespace {

// The threads that work on 0, 1, .. count - 1.
std::vector<std::thread::id> ThreadsOf(int64_t count) {
  std::vector<std::thread::id> ids(count);
  ForEachInParallel(count, [&](int64_t i) { ids[i] = std::this_thread::get_id(); });
  return ids;
}

TEST(ForEachInParallelTest, EachOnAThreadOfItsOwn) {
  const test::Threads threads(3);
  const std::vector<std::thread::id> ids = ThreadsOf(3);
  EXPECT_EQ(std::set(ids.begin(), ids.end()).size(), 3U);
  EXPECT_EQ(ids[0], std::this_thread::get_id());
}

TEST(ForEachInParallelTest, WorksOnEachOnce) {
  for (const int count : {1, 3}) {
    const test::Threads threads(count);
    for (const int64_t works : {0, 1, 2, 3, 10}) {
      std::vector<int> done(works);
      ForEachInParallel(works, [&](int64_t i) { ++done[i]; });
      EXPECT_EQ(done, std::vector<int>(works, 1)) << works << " works, " << count << " threads";
    }
  }
}

TEST(ForEachInParallelTest, ItsOwnParallelWorkStaysOnItsThread) {
  const test::Threads threads(3);
  std::vector<std::vector<std::thread::id>> inner(3);
  ForEachInParallel(3, [&](int64_t i) { inner[i] = ThreadsOf(4); });
  for (const auto& ids : inner) EXPECT_EQ(std::set(ids.begin(), ids.end()).size(), 1U);
  EXPECT_NE(inner[0][0], inner[1][0]);
}

TEST(ForEachInParallelTest, TheCallersGradientModeHolds) {
  const test::Threads threads(3);
  const auto modes = [] {
    std::vector<int> enabled(3, -1);
    ForEachInParallel(3, [&](int64_t i) { enabled[i] = c10::GradMode::is_enabled() ? 1 : 0; });
    return enabled;
  };
  for (const bool enabled : {false, true, false}) {
    const c10::AutoGradMode mode(enabled);
    EXPECT_EQ(modes(), std::vector<int>(3, enabled ? 1 : 0));
  }
}

TEST(ForEachInParallelTest, WhatAWorkDoesToItsModeEndsWithIt) {
  const test::Threads threads(3);
  const c10::AutoGradMode without(false);
  ForEachInParallel(3, [](int64_t) { c10::GradMode::set_enabled(true); });
  EXPECT_FALSE(c10::GradMode::is_enabled());
}

TEST(ForEachInParallelTest, WhatOneThrowsArrives) {
  const test::Threads threads(3);
  for (const int64_t bad : {0, 1, 2}) {
    const auto work = [&](int64_t i) {
      if (i == bad) throw std::runtime_error(std::to_string(i));
    };
    try {
      ForEachInParallel(3, work);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(error.what(), std::to_string(bad));
    }
  }
}

TEST(ForEachIndexTest, WorksOnEachOnce) {
  for (const int threads : {1, 3}) {
    const test::Threads some(threads);
    for (const int64_t count : {0, 1, 5, 100}) {
      for (const int64_t grain : {1, 7, 1000}) {
        std::vector<int> done(count);
        ForEachIndex(count, grain, [&](int64_t i) { ++done[i]; });
        EXPECT_EQ(done, std::vector<int>(count, 1)) << grain << " a run, " << threads << " threads";
      }
    }
  }
}

TEST(ForEachIndexTest, NoMoreRunsThanGrainsOrThreads) {
  const test::Threads threads(3);
  const auto runs = [](int64_t count, int64_t grain) {
    std::vector<std::thread::id> ids(count);
    ForEachIndex(count, grain, [&](int64_t i) { ids[i] = std::this_thread::get_id(); });
    std::vector<int> lengths;
    for (int64_t i = 0; i < count; ++i) {
      if (i == 0 || ids[i] != ids[i - 1]) lengths.push_back(0);
      ++lengths.back();
    }
    return lengths;
  };
  EXPECT_EQ(runs(9, 1), (std::vector<int>{3, 3, 3}));
  EXPECT_EQ(runs(8, 6), (std::vector<int>{4, 4}));
  EXPECT_EQ(runs(8, 8), (std::vector<int>{8}));
}

}  // namespace
}  // namespace quantry::engine
