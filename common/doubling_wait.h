// Waits between tries that grow from one to the next.
#pragma once

#include <algorithm>
#include <chrono>

namespace quantry {

// `first`, twice that, and so on up to `longest`; without jitter.
class DoublingWait {
 public:
  DoublingWait(std::chrono::milliseconds first, std::chrono::milliseconds longest)
      : first_(first), longest_(longest), next_(first) {}

  std::chrono::milliseconds Next() {
    const std::chrono::milliseconds wait = next_;
    next_ = std::min(next_ * 2, longest_);
    return wait;
  }
  void Reset() { next_ = first_; }

 private:
  const std::chrono::milliseconds first_;
  const std::chrono::milliseconds longest_;
  std::chrono::milliseconds next_;
};

}  // namespace quantry
