#pragma once

#include <string>

namespace quantry::engine {

// Turns a folder in quantry or compressed-tensors layout (pack-quantized, as
// this engine writes it) into a dense bf16 checkpoint: the same values the
// dense output has. Streams tensor by tensor. Throws UserError
// INVALID_CHECKPOINT when the folder is neither.
void UnpackFolder(const std::string& input, const std::string& output);

// unpack --input DIR --output DIR. Returns the exit status.
int RunUnpack(int argc, char** argv);

}  // namespace quantry::engine
