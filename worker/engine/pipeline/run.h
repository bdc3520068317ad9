#pragma once

#include <ATen/ATen.h>

#include "worker/engine/pipeline/events.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/pipeline/progress.h"

namespace quantry::engine {

// Runs a whole job: load, calibrate, quantize block by block with a checkpoint
// after each, write and verify every output, evaluate, write manifest.json
// last. Events go to `events`. Throws EngineError; the checkpoint folder then
// lets the next run go on from the last whole block. Same job, thread count,
// device type and CPU instruction set: same bytes in every file but manifest.json's times.
void RunJob(const Job& job, EventWriter& events, const Seconds& clock);

// The same on a device that is open already, whatever job.device says.
void RunJobOn(const at::Device& device, const Job& job, EventWriter& events, const Seconds& clock);

}  // namespace quantry::engine
