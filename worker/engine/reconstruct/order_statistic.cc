#include "worker/engine/reconstruct/order_statistic.h"

#include <algorithm>
#include <cmath>

namespace quantry::engine {

float InterpolatedQuantile(std::vector<float>& values, int64_t count, float largest,
                           double fraction) {
  const double position = fraction * static_cast<double>(count - 1);
  const auto below = static_cast<int64_t>(std::floor(position));
  const auto given = static_cast<int64_t>(values.size());
  if (below >= given) return largest;
  const auto at = values.begin() + below;
  std::nth_element(values.begin(), at, values.end());
  const float low = *at;
  const float high = below + 1 < given ? *std::min_element(at + 1, values.end()) : largest;
  return low + static_cast<float>(position - static_cast<double>(below)) * (high - low);
}

}  // namespace quantry::engine
