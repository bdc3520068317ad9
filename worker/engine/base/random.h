#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace quantry::engine {

// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on every machine and
// with every standard library. Copyable; a copy goes on from the same point.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }

  // Uniform in [0, bound), bound > 0; numbers that would bias are drawn again.
  uint64_t Below(uint64_t bound) {
    const uint64_t reject = (0 - bound) % bound;
    uint64_t value = Next();
    while (value < reject) value = Next();
    return value % bound;
  }

 private:
  uint64_t state_;
};

// The first `count` of a random permutation of 0 .. n - 1; count <= n.
inline std::vector<int64_t> DrawDistinct(int64_t n, int64_t count, Random& random) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = 0; i < count; ++i) {
    std::swap(order[i], order[i + static_cast<int64_t>(random.Below(n - i))]);
  }
  order.resize(count);
  return order;
}

}  // namespace quantry::engine
