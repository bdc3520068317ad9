#include "worker/engine/export/layout.h"

#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/export/compressed_tensors.h"
#include "worker/engine/export/dense.h"
#include "worker/engine/export/mixed_binary_layout.h"
#include "worker/engine/export/quantry_container.h"

namespace quantry::engine {
namespace {

template <typename T>
std::unique_ptr<Layout> Create(const GridSpec& grid, at::ScalarType scale_dtype) {
  return std::make_unique<T>(grid, scale_dtype);
}

std::unique_ptr<Layout> CreateValues() {
  return std::make_unique<DenseLayout>(GridSpec(), at::kHalf, WeightKind::kValues);
}

template <typename T>
std::unique_ptr<Layout> CreateMixed() {
  return std::make_unique<T>(GridSpec(), at::kHalf, WeightKind::kMixedBinary);
}

constexpr int64_t kScaleBits = 16;

}  // namespace

int64_t Layout::LinearBits(const PlannedLinear& linear) const {
  const auto [rows, columns] = linear.shape;
  if (kind_ == WeightKind::kValues) return linear.value_bits;
  if (kind_ == WeightKind::kMixedBinary) {
    return MixedBinaryBits(rows, columns, linear.salient, linear.holds_mask());
  }
  const int64_t zero_bits = grid_.symmetric ? 0 : grid_.bits;
  return rows * columns * grid_.bits + rows * Groups(linear) * (kScaleBits + zero_bits);
}

// transformers refuses a file without format = "pt".
std::map<std::string, std::string> Layout::Metadata(const std::vector<PlannedLinear>&) const {
  return {{"format", "pt"}};
}

const std::vector<OutputFormatRow>& OutputFormats() {
  static const std::vector<OutputFormatRow> table = {
      {"compressed-tensors", "OUTPUT_FORMAT_COMPRESSED_TENSORS", Create<CompressedTensorsLayout>,
       nullptr, nullptr},
      {"dense", "OUTPUT_FORMAT_DENSE", Create<DenseLayout>, CreateMixed<DenseLayout>, CreateValues},
      {"quantry", "OUTPUT_FORMAT_QUANTRY", Create<QuantryLayout>, CreateMixed<MixedBinaryLayout>,
       nullptr},
  };
  return table;
}

std::unique_ptr<Layout> CreateLayout(const OutputFormatRow& format, WeightKind kind,
                                     const GridSpec& grid, at::ScalarType scale_dtype) {
  if (kind == WeightKind::kGrid) return format.create(grid, scale_dtype);
  const auto create = kind == WeightKind::kMixedBinary ? format.create_mixed : format.create_values;
  if (create == nullptr) {
    throw EngineError(FailureClass::kBug, "INTERNAL", format.name + " cannot hold these weights");
  }
  return create();
}

}  // namespace quantry::engine
