#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "worker/engine/model/checkpoint.h"
#include "worker/engine/pipeline/job.h"

namespace quantry::engine {

// What a job would cost (Quote in quantization_service.proto), from
// config.json and the headers of the weight files only; no tensor and no text
// is read. What will not work is listed in `problems` instead of thrown. Memory
// is that of a machine with this process's threads.
nlohmann::ordered_json QuoteJson(const Job& job);

// Peak memory of the engine, bytes, as run.cc uses it with this process's
// threads: both streams, four fp32 copies of one block, activations of the
// batches in flight, libraries.
int64_t HostMemoryBytes(const Checkpoint& checkpoint, const StreamShape& calibration);
// Peak memory on a GPU: copies of one block and one batch's activations.
int64_t DeviceMemoryBytes(const Checkpoint& checkpoint, const StreamShape& calibration);

}  // namespace quantry::engine
