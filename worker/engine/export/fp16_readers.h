#pragma once

#include <ATen/ATen.h>

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "worker/engine/export/layout.h"

namespace quantry::engine {

// What the GPTQ and AWQ layouts share: their readers want fp16 scales and run
// the model in fp16. No scale changes by that (RoundScales).

// Sets the model's dtype in config.json to float16.
void ReadAsFp16(nlohmann::ordered_json& config);

// What to say of a model whose scales are rounded to `scale_dtype`; starts
// with a space, or is empty.
std::string Fp16Note(at::ScalarType scale_dtype);

// What fused kernels (Marlin) want of group sizes and shapes, if these are
// others; starts with a space, or is empty.
std::string KernelShapeNote(const GridSpec& grid, const std::vector<PlannedLinear>& linears);

// "q_proj [64, 32]": the last name and the shape.
std::string ShapeName(const PlannedLinear& linear);

}  // namespace quantry::engine
