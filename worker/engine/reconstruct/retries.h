#pragma once

#include <cmath>

namespace quantry::engine {

// Training that meets a loss or a parameter which is not finite begins again at a tenth of
// its rates, and once more at a hundredth.
inline constexpr int kMostStartsOver = 2;

// All rates are times this after `retries`.
inline double RateAfter(int retries) { return std::pow(0.1, retries); }

// What `attempt`(share of the rates) gives, an optional result, with its `retries` filled
// in; before it tries again it calls `again`(). Empty when no attempt gave any.
template <typename Attempt, typename Again>
auto AtLowerRates(const Attempt& attempt, const Again& again) -> decltype(attempt(1.0)) {
  for (int retries = 0;; ++retries) {
    auto result = attempt(RateAfter(retries));
    if (result) result->retries = retries;
    if (result || retries == kMostStartsOver) return result;
    again();
  }
}

}  // namespace quantry::engine
