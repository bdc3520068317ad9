#pragma once

#include <cstdint>

#include "worker/engine/methods/method.h"

namespace quantry::engine {

// Windows of a stream taken at once: a few thousand tokens, so that the widest
// activations stay small beside a block's weights.
int64_t WindowsPerBatch(int64_t length);

// Batches a whole stream takes; 0 without calibration data.
int64_t Batches(const StreamShape& stream);

}  // namespace quantry::engine
