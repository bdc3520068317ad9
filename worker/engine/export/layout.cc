#include "worker/engine/export/layout.h"

#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/export/awq_gemm.h"
#include "worker/engine/export/compressed_tensors.h"
#include "worker/engine/export/dense.h"
#include "worker/engine/export/gptq.h"
#include "worker/engine/export/int4_carrier.h"
#include "worker/engine/export/quantry_container.h"

namespace quantry::engine {
namespace {

constexpr int64_t kScaleBits = 16;

template <typename T>
std::unique_ptr<Layout> Create(const GridSpec& grid, at::ScalarType scale_dtype) {
  return std::make_unique<T>(grid, scale_dtype);
}

template <GptqVersion version>
std::unique_ptr<Layout> CreateGptq(const GridSpec& grid, at::ScalarType scale_dtype) {
  return std::make_unique<GptqLayout>(grid, scale_dtype, version);
}

std::string HoldsAll(const GridSpec&) { return ""; }

[[noreturn]] void Refuse(const OutputFormatRow& format, const std::string& why,
                         const std::vector<std::string>& fitting) {
  throw UserError("INVALID_SPEC",
                  StrCat("output format ", format.name, " ", why,
                         "; formats that can hold this: ", Join(fitting)),
                  {{"format", format.name}, {"fitting", Join(fitting)}});
}

}  // namespace

int64_t Layout::StoredBits(const PlannedLinear& linear) const {
  const auto [rows, columns] = linear.shape;
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
       HoldsAll},
      {"dense", "OUTPUT_FORMAT_DENSE", Create<DenseLayout>, HoldsAll},
      {"quantry", "OUTPUT_FORMAT_QUANTRY", Create<QuantryLayout>, HoldsAll},
      {"gptq", "OUTPUT_FORMAT_GPTQ", CreateGptq<GptqVersion::kV2>, HoldsAll},
      {"gptq-v1", "OUTPUT_FORMAT_GPTQ_V1", CreateGptq<GptqVersion::kV1>, GptqLayout::RefusesV1},
      {"awq", "OUTPUT_FORMAT_AWQ", Create<AwqGemmLayout>, AwqGemmLayout::Refuses},
      {"int4-carrier", "OUTPUT_FORMAT_INT4_CARRIER", Create<Int4CarrierLayout>,
       Int4CarrierLayout::Refuses},
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

}  // namespace quantry::engine
