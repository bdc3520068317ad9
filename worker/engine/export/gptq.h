#pragma once

#include "worker/engine/export/layout.h"

namespace quantry::engine {

// What a stored zero point means (checkpoint_format of the files).
enum class GptqVersion {
  kV1,  // "gptq": z - 1 modulo 2^b, so z = 0 is not safe; historical
  kV2,  // "gptq_v2": z
};

// GPTQ (spec: formats.md 3a). Of a linear [N, K] with b bits and G groups a row:
//   P.qweight  int32 [K b / 32, N]  codes, dense along K for every output column
//   P.qzeros   int32 [G, N b / 32]  zero points, dense along N; symmetric ones too
//   P.scales   fp16  [G, N]
//   P.g_idx    int32 [K]            group of each input column, k / g: never permuted
//
//   qweight, b = 4      31..28 27..24             7..4   3..0
//     word (r, n)      |q[n,8r+7]|q[n,8r+6]| ... |q[n,8r+1]|q[n,8r]|
//
// K and N b must be multiples of 32. v1 needs zero points of at least 1: a
// symmetric grid, or GridSpec::zero_at_least_one.
class GptqLayout : public Layout {
 public:
  GptqLayout(const GridSpec& grid, at::ScalarType scale_dtype, GptqVersion version)
      : Layout(grid, scale_dtype), version_(version) {}
  std::string_view format() const override;
  std::string_view file_stem() const override { return "model"; }
  std::vector<TensorSpec> Specs(const PlannedLinear& linear) const override;
  std::vector<at::Tensor> Encode(const QuantizedLinear& linear) const override;
  std::string Mismatch(const TensorReader& read, const PlannedLinear& linear,
                       const QuantizedLinear& expected) const override;
  void Describe(nlohmann::ordered_json& config) const override;
  std::map<std::string, std::string> MoreFiles() const override;
  std::string Compatibility(const std::vector<PlannedLinear>& linears) const override;
  std::string Refusal(const std::vector<PlannedLinear>& linears) const override;
  int64_t StoredBits(const PlannedLinear& linear) const override;

  // Why v1 cannot hold integers of a grid; empty when it can.
  static std::string RefusesV1(const GridSpec& grid);

 private:
  GptqVersion version_;
};

// One linear as GPTQ files store it, read apart from the code that writes it:
// codes uint8 [N, K], zeros uint8 [N, G], scales fp16 [N, G], groups int32 [K].
struct GptqTensors {
  at::Tensor codes;
  at::Tensor zeros;
  at::Tensor scales;
  at::Tensor groups;
};
GptqTensors ReadGptq(const TensorReader& read, const std::string& module, int bits,
                     GptqVersion version);

}  // namespace quantry::engine
