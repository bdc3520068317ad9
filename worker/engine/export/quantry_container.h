#pragma once

#include "worker/engine/export/layout.h"

namespace quantry::engine {

// Our own container for weights on a grid (docs/formats/quantry-container.md): safetensors whose
// metadata "quantry" is JSON with the grid of every linear. Of a linear [N, K]:
//   P.codes   int32 [N, ceil(K b / 32)]  dense along K
//   P.scales  fp16 or bf16 [N, G]
//   P.zeros   int32 [ceil(N b / 32), G]  dense along N; asymmetric only
class QuantryLayout : public Layout {
 public:
  using Layout::Layout;
  std::string_view format() const override { return "quantry"; }
  std::string_view file_stem() const override { return "model.quantry"; }
  std::vector<TensorSpec> Specs(const PlannedLinear& linear) const override;
  std::vector<at::Tensor> Encode(const QuantizedLinear& linear) const override;
  std::string Mismatch(const TensorReader& read, const PlannedLinear& linear,
                       const QuantizedLinear& expected) const override;
  void Describe(nlohmann::ordered_json& config) const override;
  std::map<std::string, std::string> Metadata(
      const std::vector<PlannedLinear>& linears) const override;
  std::string Compatibility(const std::vector<PlannedLinear>& linears) const override;
};

}  // namespace quantry::engine
