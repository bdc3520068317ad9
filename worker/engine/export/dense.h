#pragma once

#include "worker/engine/export/layout.h"

namespace quantry::engine {

// An ordinary checkpoint: P.weight = (codes - zeros) * scales in bf16 [N, K].
class DenseLayout : public Layout {
 public:
  using Layout::Layout;
  std::string_view format() const override { return "dense"; }
  std::string_view file_stem() const override { return "model"; }
  std::vector<TensorSpec> Specs(const PlannedLinear& linear) const override;
  std::vector<at::Tensor> Encode(const QuantizedLinear& linear) const override;
  std::string Mismatch(const TensorReader& read, const PlannedLinear& linear,
                       const QuantizedLinear& expected) const override;
  void Describe(nlohmann::ordered_json& config) const override;
  std::string Compatibility(const std::vector<PlannedLinear>& linears) const override;
  int64_t StoredBits(const PlannedLinear& linear) const override;
};

}  // namespace quantry::engine
