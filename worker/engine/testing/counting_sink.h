#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>

#include "worker/engine/methods/method.h"

namespace quantry::engine::test {

// Counts the steps it is told of, less those that came on top. Thread-safe.
class CountingSink : public ProgressSink {
 public:
  void Advance(int64_t steps, std::string_view) override { steps_ += steps; }
  void Extend(int64_t steps) override { steps_ -= steps; }
  int64_t steps() const { return steps_; }

 private:
  std::atomic<int64_t> steps_ = 0;
};

}  // namespace quantry::engine::test
