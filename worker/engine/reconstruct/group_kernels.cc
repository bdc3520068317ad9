#include "worker/engine/reconstruct/group_kernels.h"

// One body, compiled for several instruction sets; the loader picks.
#if defined(__x86_64__) && defined(__GNUC__)
#define QUANTRY_CLONES __attribute__((target_clones("arch=haswell", "default"), optimize("O3")))
#else
#define QUANTRY_CLONES
#endif

namespace quantry::engine {
namespace {
constexpr int kLanes = 16;
}

QUANTRY_CLONES float DotGroup(const float* a, const float* b, int64_t count) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) lanes[k] += a[i + k] * b[i + k];
  }
  float sum = 0;
  for (; i < count; ++i) sum += a[i] * b[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

QUANTRY_CLONES void ScaleGroup(const float* values, int64_t count, float scale, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = values[i] * scale;
}

}  // namespace quantry::engine
