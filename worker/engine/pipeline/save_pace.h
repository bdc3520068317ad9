#pragma once

#include <algorithm>

#include "worker/engine/pipeline/progress.h"

namespace quantry::engine {

// When work in progress is kept again: not within 30 s of the last time, and so
// seldom that keeping costs no more than a few percent of the time. `clock`
// outlives it. Not thread-safe.
class SavePace {
 public:
  explicit SavePace(const Seconds& clock) : clock_(clock), saved_at_(clock()) {}

  // Calls save() when it is time, or when it `must` be.
  template <typename Save>
  void Keep(bool must, const Save& save) {
    const double now = clock_();
    if (!must && now - saved_at_ < std::max(kLeastSeconds, kLeastCosts * cost_)) return;
    save();
    saved_at_ = clock_();
    cost_ = saved_at_ - now;
  }

 private:
  // Least time between two saves, absolute and in costs of one.
  static constexpr double kLeastSeconds = 30;
  static constexpr double kLeastCosts = 30;

  const Seconds& clock_;
  double saved_at_;
  double cost_ = 0;
};

}  // namespace quantry::engine
