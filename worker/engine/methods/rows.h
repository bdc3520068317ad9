#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/engine/methods/catalog.h"

// Rows of catalog.cc's table that stand in files of their own, and what rows
// have in common.
namespace quantry::engine {

// Largest group of a grid, block of columns; the server's limit too.
inline constexpr int64_t kMaxGroupSize = 65536;

const std::vector<int>& CommonBits();             // 2, 3, 4, 6, 8
const std::vector<std::string>& CommonFormats();  // every output format

std::vector<ParameterRow> GridParameters();

// The row of a method that can quantize activations too.
MethodRow WithActivations(MethodRow row);

MethodRow GptqRow();
MethodRow OmniquantRow();
MethodRow QuarotRow();
MethodRow SignroundRow();

}  // namespace quantry::engine
