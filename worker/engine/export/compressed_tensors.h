#pragma once

#include "worker/engine/export/layout.h"

namespace quantry::engine {

// compressed-tensors, format "pack-quantized" (spec: formats.md 3c). Of a
// linear [N, K] with b bits and G groups a row:
//   P.weight_packed      int32 [N, ceil(K b / 32)]  unsigned codes, dense along K
//   P.weight_scale       fp16 or bf16 [N, G]
//   P.weight_shape       int64 [2] = (N, K)
//   P.weight_zero_point  int32 [ceil(N b / 32), G]  dense along N; asymmetric only
class CompressedTensorsLayout : public Layout {
 public:
  using Layout::Layout;
  std::string_view format() const override { return "compressed-tensors"; }
  std::string_view file_stem() const override { return "model"; }
  std::vector<TensorSpec> Specs(const PlannedLinear& linear) const override;
  std::vector<at::Tensor> Encode(const QuantizedLinear& linear) const override;
  std::string Mismatch(const TensorReader& read, const PlannedLinear& linear,
                       const QuantizedLinear& expected) const override;
  void Describe(nlohmann::ordered_json& config) const override;
  std::string Compatibility(const std::vector<PlannedLinear>& linears) const override;
};

}  // namespace quantry::engine
