#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "worker/engine/quant/mixed_binary.h"

namespace quantry::engine {

// The grid of a linear's integers (spec: WeightGrid in method.proto).
struct GridSpec {
  int bits = 4;                    // 2, 3, 4, 6 or 8
  int64_t group_size = 128;        // columns a group; -1 = whole row
  bool symmetric = false;          // zero point fixed to 2^(bits-1)
  bool zero_at_least_one = false;  // asymmetric zero points 1 .. 2^bits - 1 (GPTQ v1 files)

  int64_t qmax() const { return (int64_t{1} << bits) - 1; }
  int64_t zmin() const { return zero_at_least_one ? 1 : 0; }
  int64_t GroupSizeFor(int64_t in_features) const {
    return group_size < 0 ? in_features : group_size;
  }
};

// What stands for a weight of a quantized linear. A method makes one kind.
enum class WeightKind {
  kGrid,         // integers on a uniform grid: GridSpec
  kMixedBinary,  // MixedBinaryWeight
  kValues,       // values of a method whose packed form this engine does not write
};

// One quantized linear: integers, scales and zero points are the result, and
// nothing ever derives them again from floating-point weights.
//   W[o, j] = (codes[o, j] - zeros[o, j / g]) * scales[o, j / g]
// or, when `mixed` is there, what MixedBinaryWeight says, or `values` as they
// are; grid, codes, scales and zeros then mean nothing.
struct QuantizedLinear {
  std::string name;  // below the block
  GridSpec grid;
  at::Tensor codes;   // uint8 [out, in], 0 .. 2^bits - 1
  at::Tensor scales;  // fp32 [out, groups], each exactly representable in scale_dtype
  at::Tensor zeros;   // uint8 [out, groups], 0 .. 2^bits - 1
  at::Tensor bias;    // fp32 [out] or undefined; values representable in the model's dtype
  at::ScalarType scale_dtype = at::kHalf;  // storage: bf16 for bf16 models, else fp16
  std::optional<MixedBinaryWeight> mixed;
  at::Tensor values;  // bf16 [out, in] of kValues, undefined otherwise

  WeightKind kind() const {
    if (values.defined()) return WeightKind::kValues;
    return mixed ? WeightKind::kMixedBinary : WeightKind::kGrid;
  }
  int64_t rows() const { return mixed ? mixed->rows() : Matrix().size(0); }
  int64_t columns() const { return mixed ? mixed->columns : Matrix().size(1); }

  // (codes - zeros) * scales in fp32, [out, in]: the one order of operations.
  at::Tensor Dequantize() const;

 private:
  const at::Tensor& Matrix() const { return values.defined() ? values : codes; }
};

// Everything a quantized block leaves behind, CPU tensors.
struct QuantizedBlock {
  int index = 0;
  std::vector<QuantizedLinear> linears;
  // Tensors kept dense (norms, folded by the method), already rounded to the
  // model's storage dtype; key below the block: "input_layernorm.weight".
  std::map<std::string, at::Tensor> dense;
};

}  // namespace quantry::engine
