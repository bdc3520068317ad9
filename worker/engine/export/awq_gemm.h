#pragma once

#include "worker/engine/export/layout.h"

namespace quantry::engine {

// AutoAWQ "gemm", 4 bits only (spec: formats.md 3b). Of a linear [N, K] with G
// groups a row:
//   P.qweight  int32 [K, N / 8]  codes of eight adjacent output columns a word
//   P.qzeros   int32 [G, N / 8]  zero points, the same slots, stored plainly
//   P.scales   fp16  [G, N]
//
//   bits of word c     31..28   27..24                               3..0
//   output column     |8c + 7 |8c + 5 |8c + 3|8c + 1|8c + 6|8c + 4|8c + 2|8c|
//
// N must be a multiple of 8. Symmetric grids are stored with zero points of 8.
class AwqGemmLayout : public Layout {
 public:
  using Layout::Layout;
  std::string_view format() const override { return "awq"; }
  std::string_view file_stem() const override { return "model"; }
  std::vector<TensorSpec> Specs(const PlannedLinear& linear) const override;
  std::vector<at::Tensor> Encode(const QuantizedLinear& linear) const override;
  std::string Mismatch(const TensorReader& read, const PlannedLinear& linear,
                       const QuantizedLinear& expected) const override;
  void Describe(nlohmann::ordered_json& config) const override;
  std::string Compatibility(const std::vector<PlannedLinear>& linears) const override;
  std::string Refusal(const std::vector<PlannedLinear>& linears) const override;
  int64_t StoredBits(const PlannedLinear& linear) const override;

  static std::string Refuses(const GridSpec& grid);
};

// The reading side: int32 [R, N / 8] -> uint8 [R, N], nibble by nibble. Throws
// EngineError "OUTPUT_VERIFICATION_FAILED" when it is no such matrix.
at::Tensor ReadAwqWords(const at::Tensor& words);

}  // namespace quantry::engine
