// Waits of a random length: many processes that lost the same thing at once do
// not come back at once.
#pragma once

#include <chrono>
#include <cstdint>
#include <random>

namespace quantry {

// Any time from `least` to `most`, both included, one as likely as another;
// 0 <= least <= most. Thread-safe; another sequence in every thread and process.
inline std::chrono::milliseconds RandomTime(std::chrono::milliseconds least,
                                            std::chrono::milliseconds most) {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  return std::chrono::milliseconds(
      std::uniform_int_distribution<std::int64_t>(least.count(), most.count())(random));
}

}  // namespace quantry
