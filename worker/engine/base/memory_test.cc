#include "worker/engine/base/memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

namespace quantry::engine {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

size_t ResidentBytes() {
  std::ifstream status("/proc/self/statm");
  size_t total = 0, resident = 0;
  status >> total >> resident;
  return resident * 4096;
}

struct Freed {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, Freed>;

// As LibTorch asks for a tensor's memory, every page of it touched.
Memory Tensor(size_t bytes) {
  void* memory = nullptr;
  EXPECT_EQ(posix_memalign(&memory, 64, bytes), 0);
  std::fill_n(static_cast<char*>(memory), bytes, 1);
  return Memory(static_cast<char*>(memory));
}

TEST(Memory, WhatWasFreedIsKeptUntilItIsReturned) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer has an allocator of its own";
#endif
  KeepFreedMemory();
  std::vector<Memory> tensors;
  for (int i = 0; i < 16; ++i) tensors.push_back(Tensor(3 * kMiB));
  const size_t used = ResidentBytes();
  tensors.clear();
  EXPECT_GT(ResidentBytes() + 8 * kMiB, used);
  ReturnFreedMemory();
  EXPECT_LT(ResidentBytes() + 40 * kMiB, used);
}

#ifdef QUANTRY_JEMALLOC
// glibc 2.36 grew by tens of MiB here: a freed aligned piece did not fit the next.
TEST(Memory, TensorsBetweenSmallThingsLeaveNoHoles) {
  std::vector<Memory> small;
  const auto round = [&] {
    std::vector<Memory> tensors;
    for (int i = 0; i < 8; ++i) {
      tensors.push_back(Tensor(3 * kMiB + 4096 * static_cast<size_t>(i)));
      small.push_back(Tensor(64));
    }
  };
  round();
  const size_t first = ResidentBytes();
  for (int i = 0; i < 50; ++i) round();
  EXPECT_LT(ResidentBytes(), first + 8 * kMiB);
}
#endif

}  // namespace
}  // namespace quantry::engine
