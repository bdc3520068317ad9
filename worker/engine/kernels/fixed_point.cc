#include "worker/engine/kernels/fixed_point.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "worker/engine/kernels/bit_kernel.h"

namespace quantry::engine {
namespace {

// Below it 2^22 / largest overflows fp32; nothing a model computes is so small.
constexpr float kSmallest = 1e-30F;

// Numbers handled side by side, so that sums do not wait for each other.
constexpr int64_t kLanes = 8;

int64_t RoundUp(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// x[index] * gain, filled up with zeros to whole lanes.
void Gather(const float* x, const int32_t* index, const float* gain, int64_t count,
            std::vector<float>* values) {
  values->resize(static_cast<size_t>(RoundUp(count)));
  float* to = values->data();
  if (gain != nullptr) {
    for (int64_t j = 0; j < count; ++j) to[j] = x[index[j]] * gain[j];
  } else {
    for (int64_t j = 0; j < count; ++j) to[j] = x[index[j]];
  }
  std::fill(values->begin() + count, values->end(), 0.0F);
}

// Largest |value|; infinite when one of them is NaN or infinite.
float Largest(const std::vector<float>& values) {
  // As integers, the sizes of floats keep their order, NaN above infinity.
  uint32_t largest[kLanes] = {};
  for (size_t j = 0; j < values.size(); j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) {
      largest[k] = std::max(largest[k], std::bit_cast<uint32_t>(values[j + k]) & 0x7fffffffU);
    }
  }
  const uint32_t all = *std::max_element(largest, largest + kLanes);
  return all < 0x7f800000U ? std::bit_cast<float>(all) : std::numeric_limits<float>::infinity();
}

// The nearest integer, half to even, of |x| < 2^22: beside 1.5 * 2^23 the
// floats are the integers.
int32_t Round(float x) {
  constexpr float kBase = 12582912.0F;
  return std::bit_cast<int32_t>(x + kBase) - std::bit_cast<int32_t>(kBase);
}

}  // namespace

FixedPoint ToFixedPoint(const float* x, const int32_t* index, const float* gain, int64_t count,
                        int64_t padded, int32_t* values) {
  thread_local std::vector<float> gathered;
  Gather(x, index, gain, count, &gathered);
  const float largest = Largest(gathered);
  FixedPoint result;
  if (largest < kSmallest || std::isinf(largest)) {
    std::fill(values, values + padded, 0);
    if (std::isinf(largest)) result.step = std::numeric_limits<float>::quiet_NaN();
    return result;
  }
  // One less than the limit: a product may round up by less than a unit.
  const float range = static_cast<float>((1 << kValueBits) - 2);
  const float per_unit = range / largest;
  int64_t sums[kLanes] = {}, positive[kLanes] = {};
  const auto convert = [&](int64_t j, int64_t lane) {
    values[j] = Round(gathered[j] * per_unit);
    sums[lane] += values[j];
    positive[lane] += std::max(values[j], 0);
  };
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) convert(j + lane, lane);
  }
  for (int64_t j = whole; j < count; ++j) convert(j, j - whole);
  std::fill(values + count, values + padded, 0);
  result.sum = std::accumulate(sums, sums + kLanes, int64_t{0});
  result.offset = std::accumulate(positive, positive + kLanes, int64_t{0}) - result.sum;
  result.step = largest / range;
  return result;
}

}  // namespace quantry::engine
