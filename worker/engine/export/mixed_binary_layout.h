#pragma once

#include "worker/engine/export/layout.h"

namespace quantry::engine {

// The quantry container for MixedBinaryWeight (docs/formats/quantry-container.md,
// spec: ptq161.md 12). Of a linear [N, K] with k salient columns, M = K - k:
//   P.salient_codes   uint8 [N, ceil(k / 2)]  even column in the low nibble
//   P.salient_scales  fp16 [N]
//   P.salient_zeros   uint8 [ceil(N / 2)]     even row in the low nibble
//   P.signs           uint8 [N, ceil(M / 8)]  bit c mod 8 of byte c / 8, 1 = +1
//   P.row_gain        fp16 [N]                A
//   P.row_offset      fp16 [N]                C
//   P.column_gain     fp16 [M]                r2
//   P.mask            uint8 [ceil(K / 8)]     bit j mod 8 of byte j / 8, 1 = salient;
//                                             once for linears with the same input
// Together MixedBinaryBytes. Unused bits are written 0 and never read.
class MixedBinaryLayout : public Layout {
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
  int64_t StoredBits(const PlannedLinear& linear) const override;  // of whole bytes
};

// Schemas of the container's metadata: v1 holds grids only.
constexpr std::string_view kGridContainerSchema = "quantry.container.v1";
constexpr std::string_view kMixedContainerSchema = "quantry.container.v2";
// The `kind` of every linear in a container of each; of a grid it may be left out.
constexpr std::string_view kGridKind = "grid";
constexpr std::string_view kMixedKind = "mixed-binary";

// The reading side, apart from what wrote it: one linear of a container. Takes
// `module`, `shape`, `salient` and `mask_module` of `linear`. Throws
// EngineError "OUTPUT_VERIFICATION_FAILED" when a tensor has another shape or
// type or the mask another number of ones.
MixedBinaryWeight ReadMixedBinary(const TensorReader& read, const PlannedLinear& linear);

}  // namespace quantry::engine
