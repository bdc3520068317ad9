#pragma once

#include <cstdint>

namespace quantry::engine {

// A vector as integers of 22 bits and a sign, x_j ~ step * values_j, the
// largest |x_j| being 2^22 - 2. The rounding of each x_j is at most 2^-23 of
// the largest, which is what adding up in fp32 loses too.
struct FixedPoint {
  float step = 0;      // 0: all values are 0; NaN: x has NaN or infinite values
  int64_t sum = 0;     // of the values
  int64_t offset = 0;  // sum of max(0, -value): see BitKernel
};

// x_j = x[index[j]] * gain[j] (gain nullptr = 1) for j < count; values beyond,
// up to `padded`, become 0.
FixedPoint ToFixedPoint(const float* x, const int32_t* index, const float* gain, int64_t count,
                        int64_t padded, int32_t* values);

}  // namespace quantry::engine
