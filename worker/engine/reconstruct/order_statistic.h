#pragma once

#include <cstdint>
#include <vector>

namespace quantry::engine {

// The `fraction`-quantile of `count` values, with linear interpolation between
// neighbours at position fraction * (count - 1): exact, any size (at::quantile
// ends at 2^24 values). Only values below `largest` are given, the other count
// - values.size() equal `largest`. Reorders `values`.
float InterpolatedQuantile(std::vector<float>& values, int64_t count, float largest,
                           double fraction);

}  // namespace quantry::engine
