#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace quantry::engine {

// The grid of a linear's integers (spec: WeightGrid in method.proto).
struct GridSpec {
  int bits = 4;              // 2, 3, 4, 6 or 8
  int64_t group_size = 128;  // columns a group; -1 = whole row
  bool symmetric = false;    // zero point fixed to 2^(bits-1)

  int64_t qmax() const { return (int64_t{1} << bits) - 1; }
  int64_t GroupSizeFor(int64_t in_features) const {
    return group_size < 0 ? in_features : group_size;
  }
};

// One quantized linear: integers, scales and zero points are the result, and
// nothing ever derives them again from floating-point weights.
//   W[o, j] = (codes[o, j] - zeros[o, j / g]) * scales[o, j / g]
struct QuantizedLinear {
  std::string name;  // below the block
  GridSpec grid;
  at::Tensor codes;   // uint8 [out, in], 0 .. 2^bits - 1
  at::Tensor scales;  // fp32 [out, groups], each exactly representable in scale_dtype
  at::Tensor zeros;   // uint8 [out, groups], 0 .. 2^bits - 1
  at::Tensor bias;    // fp32 [out] or undefined; values representable in the model's dtype
  at::ScalarType scale_dtype = at::kHalf;  // storage: bf16 for bf16 models, else fp16

  // (codes - zeros) * scales in fp32, [out, in]: the one order of operations.
  at::Tensor Dequantize() const;
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
