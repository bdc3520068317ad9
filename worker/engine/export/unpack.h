#pragma once

#include <string>

namespace quantry::engine {

// Turns a folder in quantry, compressed-tensors (pack-quantized, as this engine
// writes it), GPTQ (2, 3, 4 or 8 bits, v1 or v2, any g_idx) or AWQ (gemm)
// layout into a dense bf16 checkpoint: the same values the dense output has.
// A bias of zeros that only the packed model has is left out. Streams tensor
// by tensor. Throws UserError INVALID_CHECKPOINT when the folder is none of
// these, or its parts do not fit each other.
void UnpackFolder(const std::string& input, const std::string& output);

// unpack --input DIR --output DIR. Returns the exit status.
int RunUnpack(int argc, char** argv);

}  // namespace quantry::engine
