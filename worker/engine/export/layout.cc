#include "worker/engine/export/layout.h"

#include <nlohmann/json.hpp>

#include "worker/engine/export/compressed_tensors.h"
#include "worker/engine/export/dense.h"
#include "worker/engine/export/quantry_container.h"

namespace quantry::engine {
namespace {

template <typename T>
std::unique_ptr<Layout> Create(const GridSpec& grid, at::ScalarType scale_dtype) {
  return std::make_unique<T>(grid, scale_dtype);
}

}  // namespace

// transformers refuses a file without format = "pt".
std::map<std::string, std::string> Layout::Metadata(const std::vector<PlannedLinear>&) const {
  return {{"format", "pt"}};
}

const std::vector<OutputFormatRow>& OutputFormats() {
  static const std::vector<OutputFormatRow> table = {
      {"compressed-tensors",
       "OUTPUT_FORMAT_COMPRESSED_TENSORS",
       Create<CompressedTensorsLayout>,
       {2, 3, 4, 8}},
      {"dense", "OUTPUT_FORMAT_DENSE", Create<DenseLayout>, {2, 3, 4, 6, 8}, true},
      {"quantry", "OUTPUT_FORMAT_QUANTRY", Create<QuantryLayout>, {2, 3, 4, 6, 8}, true},
  };
  return table;
}

}  // namespace quantry::engine
