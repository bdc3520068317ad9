#pragma once

#include <cstdint>
#include <vector>

#include "worker/engine/export/exporter.h"
#include "worker/engine/export/layout.h"
#include "worker/engine/model/checkpoint.h"

namespace quantry::engine {

// Bits a weight takes, two ways (BitAccounting in artifact.proto).
struct BitAccounting {
  double linears = 0;  // codes, signs and all that belongs to them / weights, the papers' way,
                       // as the method made them, whatever the output carries them in
  double file = 0;     // weight files of the primary output * 8 / all parameters
  int64_t linear_weights = 0;
  int64_t parameters = 0;
  uint64_t theoretical_bytes = 0;  // of the primary output, as TheoreticalBytes counts
  uint64_t dense_bytes = 0;        // weight bytes of the source checkpoint
};

// `given`: the model before anything was rotated or restored, whose parameters
// and bytes count. `plan`: what is written, a rotated model's own head included.
// `file_bytes`: weight files of the primary output, 0 when not yet known.
BitAccounting CountBits(const Checkpoint& given, const std::vector<PlannedTensor>& plan,
                        const Layout& primary, uint64_t file_bytes);

// Bits the layout takes for one weight of the quantized linears.
double StoredBitsPerWeight(const std::vector<PlannedTensor>& plan, const Layout& layout);

// Bytes of all tensors in the layout, as Layout::StoredBits counts: without
// padding to words and headers.
uint64_t TheoreticalBytes(const std::vector<PlannedTensor>& plan, const Layout& layout);

// Bytes the tensors of an output take, headers not counted.
uint64_t OutputBytes(const std::vector<PlannedTensor>& plan, const Layout& layout);

}  // namespace quantry::engine
