#pragma once

#include <chrono>
#include <cstdint>

#include "common/doubling_wait.h"

namespace quantry::cli {

inline constexpr auto kFirstWait = std::chrono::milliseconds(250);
inline constexpr auto kLongestWait = std::chrono::seconds(5);
// Tries without a byte of advance; with the waits between them about 90 s.
inline constexpr int kMaxTries = 20;
// A stream may take this long a byte before it counts as stuck: 64 KiB/s.
inline constexpr int64_t kSlowestBytesPerSecond = 64 << 10;

// Waits between tries: doubling, jittered to 50-100 %, so that many clients of a
// restarted server do not come back at once.
class Backoff {
 public:
  Backoff(std::chrono::milliseconds first, std::chrono::milliseconds most) : wait_(first, most) {}

  // `random` in [0, 1).
  std::chrono::milliseconds Next(double random) {
    const auto ms = static_cast<double>(wait_.Next().count());
    return std::chrono::milliseconds(static_cast<int64_t>(ms * (0.5 + 0.5 * random)));
  }
  void Reset() { wait_.Reset(); }

 private:
  DoublingWait wait_;
};

}  // namespace quantry::cli
