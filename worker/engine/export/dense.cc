#include "worker/engine/export/dense.h"

#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>

#include "worker/engine/base/strings.h"
#include "worker/engine/export/packed_reader.h"

namespace quantry::engine {
namespace {

// bf16 bits of a finite float, rounded half to even.
uint16_t Bf16Bits(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

std::string DiffersAt(int64_t row, int64_t column) {
  return StrCat("weight differs at row ", row, ", column ", column);
}

// Element by element in double: (code - zero) * scale is exact there.
std::string GridDifference(const at::Tensor& weight, const QuantizedLinear& expected) {
  const auto* got = static_cast<const uint16_t*>(weight.const_data_ptr());
  const at::Tensor codes = expected.codes.contiguous();
  const at::Tensor scales = expected.scales.contiguous();
  const at::Tensor zeros = expected.zeros.contiguous();
  const auto* q = codes.const_data_ptr<uint8_t>();
  const auto* s = scales.const_data_ptr<float>();
  const auto* z = zeros.const_data_ptr<uint8_t>();
  const int64_t columns = codes.size(1);
  const int64_t group = columns / scales.size(1);
  for (int64_t i = 0; i < codes.numel(); ++i) {
    const int64_t at = i / columns * scales.size(1) + i % columns / group;
    const double value = static_cast<double>(q[i] - z[at]) * static_cast<double>(s[at]);
    if (got[i] != Bf16Bits(static_cast<float>(value))) {
      return DiffersAt(i / columns, i % columns);
    }
  }
  return "";
}

// Element by element, walking the columns in the order of the weight.
std::string MixedDifference(const at::Tensor& weight, const MixedBinaryWeight& expected) {
  const auto* got = static_cast<const uint16_t*>(weight.const_data_ptr());
  const auto salient = expected.salient.accessor<int32_t, 1>();
  const auto codes = expected.codes.accessor<uint8_t, 2>();
  const auto scales = expected.scales.accessor<float, 1>();
  const auto zeros = expected.zeros.accessor<uint8_t, 1>();
  const auto signs = expected.signs.accessor<uint8_t, 2>();
  const auto gain = expected.row_gain.accessor<float, 1>();
  const auto offset = expected.row_offset.accessor<float, 1>();
  const auto column_gain = expected.column_gain.accessor<float, 1>();
  for (int64_t i = 0; i < expected.rows(); ++i) {
    int64_t s = 0;  // salient columns passed
    for (int64_t j = 0; j < expected.columns; ++j) {
      float value = 0;
      if (s < salient.size(0) && salient[s] == j) {
        value = static_cast<float>(codes[i][s] - zeros[i]) * scales[i];
        ++s;
      } else {
        const float signed_gain = signs[i][j - s] != 0 ? gain[i] : -gain[i];
        value = (offset[i] + signed_gain) * column_gain[j - s];
      }
      if (got[i * expected.columns + j] != Bf16Bits(value)) return DiffersAt(i, j);
    }
  }
  return "";
}

}  // namespace

std::vector<TensorSpec> DenseLayout::Specs(const PlannedLinear& linear) const {
  return {{linear.module + ".weight", at::kBFloat16, {linear.shape.out, linear.shape.in}}};
}

std::vector<at::Tensor> DenseLayout::Encode(const QuantizedLinear& linear) const {
  if (linear.kind() == WeightKind::kValues) return {linear.values};
  return {linear.Dequantize().to(at::kBFloat16)};
}

std::string DenseLayout::Mismatch(const TensorReader& read, const PlannedLinear& linear,
                                  const QuantizedLinear& expected) const {
  const at::Tensor weight = read(linear.module + ".weight").contiguous();
  const std::vector<int64_t> shape = {expected.rows(), expected.columns()};
  if (weight.scalar_type() != at::kBFloat16 || weight.sizes() != shape) {
    return StrCat("weight should be bf16 ", at::IntArrayRef(shape), ", got ",
                  c10::toString(weight.scalar_type()), " ", weight.sizes());
  }
  if (expected.kind() == WeightKind::kValues) {
    return SameBytes(weight, expected.values) ? "" : "weight differs";
  }
  return expected.mixed ? MixedDifference(weight, *expected.mixed)
                        : GridDifference(weight, expected);
}

int64_t DenseLayout::StoredBits(const PlannedLinear& linear) const {
  return linear.shape.out * linear.shape.in * 16;
}

void DenseLayout::Describe(nlohmann::ordered_json&) const {}

std::string DenseLayout::Compatibility(const std::vector<PlannedLinear>&) const {
  return "Loads wherever the original checkpoint loads (transformers, vLLM, SGLang, converters to "
         "GGUF). Weights are the method's values in bf16; no memory saved.";
}

}  // namespace quantry::engine
