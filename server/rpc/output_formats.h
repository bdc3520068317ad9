// Which output formats can hold integers of a grid: what a client learns at
// submit instead of from a failed job. The engine holds the same rules
// (worker/engine/export/layout.cc) and those that need the model's shapes.
#pragma once

#include <string>

#include "quantry/v1/job.pb.h"
#include "quantry/v1/method.pb.h"

namespace quantry::server {

// The grid of whichever method is set; nullptr when it has none.
const v1::WeightGrid* GridOf(const v1::Method& method);

// What a grid must be for the format ("4 bits"); empty when this one will do.
std::string WantedGrid(v1::OutputFormat format, const v1::WeightGrid& grid);

// "COMPRESSED_TENSORS, DENSE, ...": the formats that can hold the grid.
std::string FormatsHolding(const v1::WeightGrid& grid);

// All of them.
std::string KnownFormats();

}  // namespace quantry::server
