#pragma once

#include <cstdint>

namespace quantry::engine {

// Inner loops over one group, vectorised. The order of the sum is fixed for a
// given machine, whatever the thread count.

// sum of a[i] * b[i]
float DotGroup(const float* a, const float* b, int64_t count);
// out[i] = values[i] * scale
void ScaleGroup(const float* values, int64_t count, float scale, float* out);

// One Adam step of `count` logits nu of RoundingWindow's h(nu) = width rsig(nu / width) + lowest,
// along dL/dh; value = h(nu) after it. A logit gives the same bits wherever it stands.
struct LogitStep {
  float width;
  float lowest;
  float rate;
  float mean_correction;    // 1 / (1 - beta1^t)
  float square_correction;  // 1 / sqrt(1 - beta2^t)
};
struct LogitRows {
  const float* slopes;  // dL/dh
  float* nu;
  float* mean;
  float* square;
  float* value;
};
void StepLogits(const LogitStep& step, int64_t count, const LogitRows& rows);
// value = h(nu), the same bits as StepLogits gives.
void LogitValues(float width, float lowest, int64_t count, const float* nu, float* value);

}  // namespace quantry::engine
