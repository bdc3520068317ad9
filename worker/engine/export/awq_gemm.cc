#include "worker/engine/export/awq_gemm.h"

#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/export/fp16_readers.h"
#include "worker/engine/export/packed_reader.h"
#include "worker/engine/quant/packing.h"

namespace quantry::engine {
namespace {

constexpr int kBits = 4;
constexpr int64_t kColumns = 8;  // of one word

// Output column, within its eight, that slot i (bits 4i .. 4i+3) holds; and the
// slot that holds column j.
constexpr std::array<int, kColumns> kColumnOfSlot = {0, 2, 4, 6, 1, 3, 5, 7};
constexpr std::array<int, kColumns> kSlotOfColumn = {0, 4, 1, 5, 2, 6, 3, 7};

constexpr bool Inverse() {
  for (int i = 0; i < kColumns; ++i) {
    if (kSlotOfColumn[kColumnOfSlot[i]] != i) return false;
  }
  return true;
}
static_assert(Inverse());

// The word of columns 0 .. 7 that hold codes 0 .. 7.
constexpr uint32_t GoldenWord() {
  uint32_t word = 0;
  for (int i = 0; i < kColumns; ++i) word |= static_cast<uint32_t>(kColumnOfSlot[i]) << (kBits * i);
  return word;
}
static_assert(GoldenWord() == 0x75316420, "golden vector of formats.md 3.0");

// uint8 [R, N] -> int32 [R, N / 8]: columns in slot order, then plain nibbles.
at::Tensor PackWords(const at::Tensor& values) {
  const at::Tensor order =
      at::tensor(std::vector<int64_t>(kColumnOfSlot.begin(), kColumnOfSlot.end()), at::kLong);
  const at::Tensor words = values.contiguous().view({values.size(0), -1, kColumns});
  return PackRows(words.index_select(2, order).view(values.sizes()), kBits);
}

}  // namespace

at::Tensor ReadAwqWords(const at::Tensor& words) {
  if (words.scalar_type() != at::kInt || words.dim() != 2) {
    throw EngineError(FailureClass::kEnvironment, "OUTPUT_VERIFICATION_FAILED",
                      StrCat("packed codes should be an int32 matrix, got ",
                             c10::toString(words.scalar_type()), " ", words.sizes()));
  }
  const at::Tensor source = words.contiguous();
  at::Tensor values = at::empty({source.size(0), source.size(1) * kColumns}, at::kByte);
  const auto* from = source.const_data_ptr<int32_t>();
  auto* to = values.mutable_data_ptr<uint8_t>();
  for (int64_t i = 0; i < source.numel(); ++i) {
    const auto word = static_cast<uint32_t>(from[i]);
    for (int j = 0; j < kColumns; ++j) {
      to[i * kColumns + j] = static_cast<uint8_t>((word >> (4 * kSlotOfColumn[j])) & 0xfU);
    }
  }
  return values;
}

std::vector<TensorSpec> AwqGemmLayout::Specs(const PlannedLinear& linear) const {
  const auto [rows, columns] = linear.shape;
  const int64_t groups = Groups(linear);
  return {{linear.module + ".qweight", at::kInt, {columns, rows / kColumns}},
          {linear.module + ".qzeros", at::kInt, {groups, rows / kColumns}},
          {linear.module + ".scales", at::kHalf, {groups, rows}}};
}

std::vector<at::Tensor> AwqGemmLayout::Encode(const QuantizedLinear& linear) const {
  return {PackWords(linear.codes.t()), PackWords(linear.zeros.t()),
          linear.scales.to(at::kHalf).t().contiguous()};
}

std::string AwqGemmLayout::Mismatch(const TensorReader& read, const PlannedLinear& linear,
                                    const QuantizedLinear& expected) const {
  const at::Tensor codes = ReadAwqWords(read(linear.module + ".qweight")).t().contiguous();
  const at::Tensor zeros = ReadAwqWords(read(linear.module + ".qzeros")).t().contiguous();
  const at::Tensor scales = read(linear.module + ".scales").t().contiguous();
  return CompareIntegers(codes, scales, zeros, expected, at::kHalf);
}

void AwqGemmLayout::Describe(nlohmann::ordered_json& config) const {
  ReadAsFp16(config);
  config["quantization_config"] = {
      {"quant_method", "awq"},
      {"bits", kBits},
      {"group_size", grid().group_size},
      {"zero_point", true},
      {"version", "gemm"},
      {"modules_to_not_convert", nlohmann::ordered_json::array({"lm_head"})}};
}

std::string AwqGemmLayout::Compatibility(const std::vector<PlannedLinear>& linears) const {
  return "Loads in vLLM (Marlin), SGLang, TGI and transformers with AutoAWQ's kernels: the most "
         "widely read asymmetric 4-bit layout." +
         Fp16Note(scale_dtype()) + KernelShapeNote(grid(), linears);
}

std::string AwqGemmLayout::Refusal(const std::vector<PlannedLinear>& linears) const {
  std::set<std::string> misfits;
  for (const PlannedLinear& linear : linears) {
    if (linear.shape.out % kColumns != 0) misfits.insert(ShapeName(linear));
  }
  if (misfits.empty()) return "";
  return StrCat("packs eight output columns a word: out_features must be multiples of 8, got ",
                Join(misfits));
}

std::string AwqGemmLayout::Refuses(const GridSpec& grid) {
  if (grid.bits == kBits) return "";
  return StrCat("holds 4-bit codes only and no reader knows another width, got ", grid.bits,
                " bits");
}

int64_t AwqGemmLayout::StoredBits(const PlannedLinear& linear) const {
  const auto [rows, columns] = linear.shape;
  return rows * columns * kBits + rows * Groups(linear) * (kScaleBits + kBits);
}

}  // namespace quantry::engine
