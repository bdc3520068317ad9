#include "worker/engine/export/dense.h"

#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>

#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

// bf16 bits of a finite float, rounded half to even.
uint16_t Bf16Bits(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace

std::vector<TensorSpec> DenseLayout::Specs(const PlannedLinear& linear) const {
  return {{linear.module + ".weight", at::kBFloat16, {linear.shape.out, linear.shape.in}}};
}

std::vector<at::Tensor> DenseLayout::Encode(const QuantizedLinear& linear) const {
  return {linear.Dequantize().to(at::kBFloat16)};
}

// Element by element in double: (code - zero) * scale is exact there.
std::string DenseLayout::Mismatch(const TensorReader& read, const PlannedLinear& linear,
                                  const QuantizedLinear& expected) const {
  const at::Tensor weight = read(linear.module + ".weight").contiguous();
  if (weight.scalar_type() != at::kBFloat16 || weight.sizes() != expected.codes.sizes()) {
    return StrCat("weight should be bf16 ", expected.codes.sizes(), ", got ",
                  c10::toString(weight.scalar_type()), " ", weight.sizes());
  }
  const auto* got = static_cast<const uint16_t*>(weight.const_data_ptr());
  const at::Tensor codes = expected.codes.contiguous();
  const at::Tensor scales = expected.scales.contiguous();
  const at::Tensor zeros = expected.zeros.contiguous();
  const auto* q = codes.const_data_ptr<uint8_t>();
  const auto* s = scales.const_data_ptr<float>();
  const auto* z = zeros.const_data_ptr<uint8_t>();
  const int64_t columns = linear.shape.in;
  const int64_t group = columns / scales.size(1);
  for (int64_t i = 0; i < codes.numel(); ++i) {
    const int64_t at = i / columns * scales.size(1) + i % columns / group;
    const double value = static_cast<double>(q[i] - z[at]) * static_cast<double>(s[at]);
    if (got[i] != Bf16Bits(static_cast<float>(value))) {
      return StrCat("weight differs at row ", i / columns, ", column ", i % columns);
    }
  }
  return "";
}

int64_t DenseLayout::StoredBits(const PlannedLinear& linear) const {
  return linear.shape.out * linear.shape.in * 16;
}

void DenseLayout::Describe(nlohmann::ordered_json&) const {}

std::string DenseLayout::Compatibility(const std::vector<PlannedLinear>&) const {
  return "Loads wherever the original checkpoint loads (transformers, vLLM, SGLang, converters to "
         "GGUF). Weights are the quantized values in bf16: same quality, no memory saved.";
}

}  // namespace quantry::engine
