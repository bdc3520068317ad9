#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <string>

#include "worker/engine/methods/method.h"

namespace quantry::engine {

// Windows of a stream taken at once: a few thousand tokens, so that the widest
// activations stay small beside a block's weights.
int64_t WindowsPerBatch(int64_t length);

// Batches a whole stream takes; 0 without calibration data.
int64_t Batches(const StreamShape& stream);

// Throws INVALID_SPEC when a training step would take more windows than there are.
// `name`: of the option that says how many.
void CheckBatchSize(int64_t batch_size, const StreamShape& stream,
                    const std::string& name = "batch_size");

struct Batch {
  int64_t index = 0;
  int64_t first = 0;  // windows [first, last)
  int64_t last = 0;
};

// How many batches to run side by side, each on one core: all cores on the CPU
// as long as their activations together stay small, else 1 (the operations
// inside a batch then use all cores). Small models gain most: their operations
// are too short to be worth splitting.
int BatchWorkers(const ModelConfig& config, const StreamShape& stream, const at::Device& device);

// Calls work(worker, batch) for every batch; worker w takes batches w,
// w + workers, .. in order, so that sums kept by worker or by batch come out
// the same in every run. Exceptions pass through.
void ForEachBatch(const StreamShape& stream, int workers,
                  const std::function<void(int worker, const Batch& batch)>& work);

}  // namespace quantry::engine
