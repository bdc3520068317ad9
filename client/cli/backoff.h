#pragma once

#include <algorithm>
#include <chrono>

namespace quantry::cli {

// Waits between tries: doubling, jittered to 50-100 %, so that many clients of a
// restarted server do not come back at once.
class Backoff {
 public:
  Backoff(std::chrono::milliseconds first, std::chrono::milliseconds most)
      : first_(first), most_(most), next_(first) {}

  // `random` in [0, 1).
  std::chrono::milliseconds Next(double random) {
    const std::chrono::milliseconds wait = next_;
    next_ = std::min(next_ * 2, most_);
    return std::chrono::milliseconds(
        static_cast<int64_t>(static_cast<double>(wait.count()) * (0.5 + 0.5 * random)));
  }
  void Reset() { next_ = first_; }

 private:
  const std::chrono::milliseconds first_;
  const std::chrono::milliseconds most_;
  std::chrono::milliseconds next_;
};

}  // namespace quantry::cli
