#include "worker/engine/methods/batches.h"

#include <algorithm>

namespace quantry::engine {
namespace {

constexpr int64_t kBatchTokens = 2048;

}  // namespace

int64_t WindowsPerBatch(int64_t length) { return std::max<int64_t>(1, kBatchTokens / length); }

int64_t Batches(const StreamShape& stream) {
  if (stream.windows == 0) return 0;
  const int64_t step = WindowsPerBatch(stream.length);
  return (stream.windows + step - 1) / step;
}

}  // namespace quantry::engine
