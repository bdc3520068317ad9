#pragma once

#include <cstdint>

namespace quantry::engine {

// Inner loops over one group, vectorised. The order of the sum is fixed for a
// given machine, whatever the thread count.

// sum of a[i] * b[i]
float DotGroup(const float* a, const float* b, int64_t count);
// out[i] = values[i] * scale
void ScaleGroup(const float* values, int64_t count, float scale, float* out);

}  // namespace quantry::engine
