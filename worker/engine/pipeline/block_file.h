#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "worker/engine/pipeline/events.h"
#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

// A quantized block on disk, the engine's working copy: packing, evaluation
// and resume all read it. safetensors with, of every linear [N, K],
//   L.codes  int32 [N, ceil(K b / 32)] (quant/packing)   L.zeros  uint8 [N, G]
//   L.scales fp16 or bf16 [N, G]                         L.bias   fp32 [N]
// or, of a MixedBinaryWeight with k salient columns,
//   L.salient int32 [k]   L.salient_codes int32 [N, ceil(k / 8)] (quant/packing)
//   L.scales  fp16 [N]    L.zeros         uint8 [N]
//   L.signs   int32 [N, ceil((K - k) / 32)] (quant/packing, 1 bit)
//   L.row_gain, L.row_offset fp16 [N]     L.column_gain fp16 [K - k]
// or, of a weight without a packed form, L.values bf16 [N, K];
// and "dense.<key>" as stored in outputs. Metadata "quantry" holds the grid,
// the block's report and the digest of the values. Written atomically.

std::string BlockFileName(int index);  // "block-00003.safetensors"

void WriteBlockFile(const std::string& path, const QuantizedBlock& block,
                    const BlockReport& report);

struct StoredBlock {
  QuantizedBlock block;
  BlockReport report;
};

// Throws EngineError ENVIRONMENT "CHECKPOINT_CORRUPT" when the values do not
// match their digest, UserError INVALID_CHECKPOINT when it is no such file.
StoredBlock ReadBlockFile(const std::string& path);

// SHA-256 over names, shapes and values of everything in a block.
std::string BlockDigest(const QuantizedBlock& block);

}  // namespace quantry::engine
