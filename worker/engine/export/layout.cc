#include "worker/engine/export/layout.h"

#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/export/awq_gemm.h"
#include "worker/engine/export/compressed_tensors.h"
#include "worker/engine/export/dense.h"
#include "worker/engine/export/gptq.h"
#include "worker/engine/export/int4_carrier.h"
#include "worker/engine/export/mixed_binary_layout.h"
#include "worker/engine/export/quantry_container.h"

namespace quantry::engine {
namespace {

template <typename T>
std::unique_ptr<Layout> Create(const GridSpec& grid, at::ScalarType scale_dtype) {
  return std::make_unique<T>(grid, scale_dtype);
}

template <GptqVersion version>
std::unique_ptr<Layout> CreateGptq(const GridSpec& grid, at::ScalarType scale_dtype) {
  return std::make_unique<GptqLayout>(grid, scale_dtype, version);
}

std::unique_ptr<Layout> CreateValues() {
  return std::make_unique<DenseLayout>(GridSpec(), at::kHalf, WeightKind::kValues);
}

template <typename T>
std::unique_ptr<Layout> CreateMixed() {
  return std::make_unique<T>(GridSpec(), at::kHalf, WeightKind::kMixedBinary);
}

std::string HoldsAll(const GridSpec&) { return ""; }

// What readers of packed files know.
std::string HoldsCommonBits(const GridSpec& grid) {
  const bool known = grid.bits == 2 || grid.bits == 3 || grid.bits == 4 || grid.bits == 8;
  return known ? "" : StrCat("holds 2, 3, 4 or 8 bits, not ", grid.bits);
}

std::string RefusesGptqV1(const GridSpec& grid) {
  const std::string why = HoldsCommonBits(grid);
  return why.empty() ? GptqLayout::RefusesV1(grid) : why;
}

[[noreturn]] void Refuse(const OutputFormatRow& format, const std::string& why,
                         const std::vector<std::string>& fitting) {
  throw UserError("INVALID_SPEC",
                  StrCat("output format ", format.name, " ", why,
                         "; formats that can hold this: ", Join(fitting)),
                  {{"format", format.name}, {"fitting", Join(fitting)}});
}

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

int64_t Layout::StoredBits(const PlannedLinear& linear) const { return LinearBits(linear); }

// transformers refuses a file without format = "pt".
std::map<std::string, std::string> Layout::Metadata(const std::vector<PlannedLinear>&) const {
  return {{"format", "pt"}};
}

const std::vector<OutputFormatRow>& OutputFormats() {
  static const std::vector<OutputFormatRow> table = {
      {"compressed-tensors", "OUTPUT_FORMAT_COMPRESSED_TENSORS", Create<CompressedTensorsLayout>,
       HoldsCommonBits, nullptr, nullptr, false},
      {"dense", "OUTPUT_FORMAT_DENSE", Create<DenseLayout>, HoldsAll, CreateMixed<DenseLayout>,
       CreateValues, true},
      {"quantry", "OUTPUT_FORMAT_QUANTRY", Create<QuantryLayout>, HoldsAll,
       CreateMixed<MixedBinaryLayout>, nullptr, true},
      {"gptq", "OUTPUT_FORMAT_GPTQ", CreateGptq<GptqVersion::kV2>, HoldsCommonBits, nullptr,
       nullptr, false},
      {"gptq-v1", "OUTPUT_FORMAT_GPTQ_V1", CreateGptq<GptqVersion::kV1>, RefusesGptqV1, nullptr,
       nullptr, false},
      {"awq", "OUTPUT_FORMAT_AWQ", Create<AwqGemmLayout>, AwqGemmLayout::Refuses, nullptr, nullptr,
       false},
      {"int4-carrier", "OUTPUT_FORMAT_INT4_CARRIER", Create<Int4CarrierLayout>,
       Int4CarrierLayout::Refuses, nullptr, nullptr, false},
  };
  return table;
}

void CheckFormat(const OutputFormatRow& format, const GridSpec& grid) {
  const std::string why = format.refuses(grid);
  if (why.empty()) return;
  std::vector<std::string> fitting;
  for (const OutputFormatRow& row : OutputFormats()) {
    if (row.refuses(grid).empty()) fitting.push_back(row.name);
  }
  Refuse(format, why, fitting);
}

void CheckShapes(const OutputFormatRow& format, const GridSpec& grid,
                 const std::vector<PlannedLinear>& linears) {
  const auto refusal = [&](const OutputFormatRow& row) {
    return row.create(grid, at::kHalf)->Refusal(linears);
  };
  const std::string why = refusal(format);
  if (why.empty()) return;
  std::vector<std::string> fitting;
  for (const OutputFormatRow& row : OutputFormats()) {
    if (row.refuses(grid).empty() && refusal(row).empty()) fitting.push_back(row.name);
  }
  Refuse(format, why, fitting);
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
