#include "worker/engine/export/gptq.h"

#include <nlohmann/json.hpp>
#include <set>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/export/fp16_readers.h"
#include "worker/engine/export/packed_reader.h"
#include "worker/engine/quant/packing.h"

namespace quantry::engine {
namespace {

constexpr int64_t kWordBits = 32;

constexpr unsigned StoredZero(unsigned zero, int bits) { return (zero - 1U) & ((1U << bits) - 1U); }

// The middle zero points of v1 files: formats.md 3.0, "qzeros constants".
static_assert(StoredZero(2, 2) == 0b01 && StoredZero(4, 3) == 0b011 && StoredZero(8, 4) == 0x7);
static_assert(StoredZero(0, 4) == 0xf, "why v1 must never hold z = 0: some readers make it 16");

at::Tensor GroupOfColumn(int64_t columns, int64_t groups) {
  return at::arange(columns, at::kInt).floor_divide_(columns / groups);
}

// v1's field of every zero point, uint8.
at::Tensor StoredZeros(const QuantizedLinear& linear) {
  const at::Tensor zeros = linear.zeros.contiguous();
  at::Tensor stored = at::empty_like(zeros);
  const auto* from = zeros.const_data_ptr<uint8_t>();
  auto* to = stored.mutable_data_ptr<uint8_t>();
  for (int64_t i = 0; i < zeros.numel(); ++i) {
    if (from[i] == 0) {
      throw EngineError(FailureClass::kBug, "INTERNAL",
                        StrCat(linear.name,
                               ": a zero point of 0 reached the gptq-v1 layout, which holds 1 and "
                               "more; ask for format gptq instead"));
    }
    to[i] = static_cast<uint8_t>(StoredZero(from[i], linear.grid.bits));
  }
  return stored;
}

nlohmann::ordered_json QuantizationConfig(const GridSpec& grid, GptqVersion version) {
  const char* format = version == GptqVersion::kV1 ? "gptq" : "gptq_v2";
  return {{"quant_method", "gptq"},
          {"bits", grid.bits},
          {"group_size", grid.group_size},
          {"sym", grid.symmetric},
          {"desc_act", false},
          {"checkpoint_format", format},
          {"format", format},
          {"pack_dtype", "int32"},
          {"lm_head", false},
          {"dynamic", nlohmann::ordered_json::object()},
          {"meta",
           {{"quantizer", nlohmann::ordered_json::array({StrCat("quantry:", QUANTRY_VERSION)})}}}};
}

std::string GptqEngines(const GridSpec& grid) {
  if (grid.symmetric && (grid.bits == 4 || grid.bits == 8)) {
    return "Loads in vLLM (Marlin, Machete), SGLang and transformers with GPTQModel.";
  }
  std::string note =
      "Loads in transformers with GPTQModel (Torch kernel) and SGLang (fp16, no mixture of "
      "experts). vLLM's gptq loader takes it until early 2026 only (fp16 activations; the kernel "
      "is gone since, vllm#38288)";
  if (grid.bits == 8) return note + ".";
  note += "; newer ones need --quantization humming.";
  if (grid.bits == 4) return note + " For vLLM use format awq, or symmetric=true.";
  return note +
         StrCat(" For any vLLM use format int4-carrier",
                grid.bits == 2 ? "; some 2-bit vLLM kernels are inexact (vllm#37185)." : ".");
}

}  // namespace

std::string_view GptqLayout::format() const {
  return version_ == GptqVersion::kV1 ? "gptq-v1" : "gptq";
}

std::vector<TensorSpec> GptqLayout::Specs(const PlannedLinear& linear) const {
  const auto [rows, columns] = linear.shape;
  const int64_t groups = Groups(linear);
  return {{linear.module + ".qweight", at::kInt, {PackedWords(columns, grid().bits), rows}},
          {linear.module + ".qzeros", at::kInt, {groups, PackedWords(rows, grid().bits)}},
          {linear.module + ".scales", at::kHalf, {groups, rows}},
          {linear.module + ".g_idx", at::kInt, {columns}}};
}

std::vector<at::Tensor> GptqLayout::Encode(const QuantizedLinear& linear) const {
  const at::Tensor zeros = version_ == GptqVersion::kV1 ? StoredZeros(linear) : linear.zeros;
  return {PackRows(linear.codes, grid().bits).t().contiguous(), PackRows(zeros.t(), grid().bits),
          linear.scales.to(at::kHalf).t().contiguous(),
          GroupOfColumn(linear.codes.size(1), linear.scales.size(1))};
}

GptqTensors ReadGptq(const TensorReader& read, const std::string& module, int bits,
                     GptqVersion version) {
  GptqTensors tensors;
  tensors.groups = read(module + ".g_idx");
  tensors.scales = read(module + ".scales");
  if (tensors.scales.dim() != 2 || tensors.groups.dim() != 1) {
    throw EngineError(FailureClass::kEnvironment, "OUTPUT_VERIFICATION_FAILED",
                      StrCat(module, ": scales should be a matrix and g_idx a vector, got ",
                             tensors.scales.sizes(), " and ", tensors.groups.sizes()));
  }
  tensors.scales = tensors.scales.t().contiguous();
  const at::Tensor words = read(module + ".qweight");
  tensors.codes = ReadPackedColumns(words, tensors.groups.numel(), bits).t().contiguous();
  const at::Tensor zeros = ReadPackedRows(read(module + ".qzeros"), tensors.codes.size(0), bits);
  tensors.zeros = zeros.t().contiguous();
  if (version == GptqVersion::kV1)
    tensors.zeros = tensors.zeros.add(1).bitwise_and((1 << bits) - 1);
  return tensors;
}

std::string GptqLayout::Mismatch(const TensorReader& read, const PlannedLinear& linear,
                                 const QuantizedLinear& expected) const {
  const GptqTensors got = ReadGptq(read, linear.module, grid().bits, version_);
  const int64_t group = grid().GroupSizeFor(linear.shape.in);
  if (got.groups.scalar_type() != at::kInt || got.groups.numel() != linear.shape.in) {
    return StrCat("g_idx should be int32 [", linear.shape.in, "]");
  }
  const at::Tensor groups = got.groups.contiguous();
  for (int64_t k = 0; k < linear.shape.in; ++k) {
    if (groups.const_data_ptr<int32_t>()[k] != k / group) return StrCat("g_idx differs at ", k);
  }
  return CompareIntegers(got.codes, got.scales, got.zeros, expected, at::kHalf);
}

void GptqLayout::Describe(nlohmann::ordered_json& config) const {
  ReadAsFp16(config);
  config["quantization_config"] = QuantizationConfig(grid(), version_);
}

std::map<std::string, std::string> GptqLayout::MoreFiles() const {
  return {{"quantize_config.json", QuantizationConfig(grid(), version_).dump(2) + "\n"}};
}

std::string GptqLayout::Compatibility(const std::vector<PlannedLinear>& linears) const {
  std::string note = GptqEngines(grid());
  if (version_ == GptqVersion::kV1) {
    note +=
        " Zero points are stored minus one (checkpoint_format gptq) for readers that know "
        "nothing newer.";
    if (!grid().symmetric) {
      note += " GPTQModel's own load refuses an asymmetric one of others: format gptq is for it.";
    }
  } else if (!(grid().symmetric && grid().bits >= 4)) {
    note +=
        " Zero points are stored plainly (checkpoint_format gptq_v2; vLLM since October 2025, "
        "vllm#26092).";
  }
  return note + Fp16Note(scale_dtype()) + KernelShapeNote(grid(), linears);
}

std::string GptqLayout::Refusal(const std::vector<PlannedLinear>& linears) const {
  std::set<std::string> misfits;
  for (const PlannedLinear& linear : linears) {
    const auto [rows, columns] = linear.shape;
    if (columns % kWordBits == 0 && rows * grid().bits % kWordBits == 0) continue;
    misfits.insert(ShapeName(linear));
  }
  if (misfits.empty()) return "";
  return StrCat(
      "fills whole 32-bit words: in_features and out_features * bits must be multiples "
      "of 32, got ",
      Join(misfits), " at ", grid().bits, " bits");
}

std::string GptqLayout::RefusesV1(const GridSpec& grid) {
  if (grid.symmetric || grid.zero_at_least_one) return "";
  return "stores zero points minus one, so they must be at least 1 from calibration on: set "
         "grid.zero_point_at_least_one or grid.symmetric, or use gptq, which stores them plainly";
}

int64_t GptqLayout::StoredBits(const PlannedLinear& linear) const {
  const auto [rows, columns] = linear.shape;
  return rows * columns * grid().bits + rows * Groups(linear) * (kScaleBits + grid().bits) +
         columns * kWordBits;
}

}  // namespace quantry::engine
