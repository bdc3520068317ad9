#pragma once

#include <string>

#include "worker/engine/reconstruct/progressive_rounding.h"

namespace quantry::engine {

// What a block has learned after some of its stages, on disk: safetensors with
// "linear.N.logits" [out, in], "linear.N.scale_logits" [out, groups] and
// "dense.N", all fp32; metadata "quantry" names block and stage. Written
// atomically.

std::string StageFileName(int block, int stages_done);  // "stage-00003-007.safetensors"

void WriteStageFile(const std::string& path, int block, const StageState& state);

// Throws EngineError ENVIRONMENT "CHECKPOINT_CORRUPT" when it is no such file,
// or of another block.
StageState ReadStageFile(const std::string& path, int block);

}  // namespace quantry::engine
