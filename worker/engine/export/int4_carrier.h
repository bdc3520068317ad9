#pragma once

#include "worker/engine/export/compressed_tensors.h"

namespace quantry::engine {

// Integers of 2 or 3 bits carried without loss by symmetric 4-bit ones (spec:
// formats.md 3.3), stored as compressed-tensors "pack-quantized":
//   code4 = code - zero + 8,  the same scales and groups,
// so that (code4 - 8) * scale is (code - zero) * scale, bit for bit. Engines
// that know no 2- or 3-bit kernel run it with their symmetric 4-bit one, at
// 4 bits a weight.
class Int4CarrierLayout : public Layout {
 public:
  Int4CarrierLayout(const GridSpec& grid, at::ScalarType scale_dtype);
  std::string_view format() const override { return "int4-carrier"; }
  std::string_view file_stem() const override { return "model"; }
  std::vector<TensorSpec> Specs(const PlannedLinear& linear) const override;
  std::vector<at::Tensor> Encode(const QuantizedLinear& linear) const override;
  std::string Mismatch(const TensorReader& read, const PlannedLinear& linear,
                       const QuantizedLinear& expected) const override;
  void Describe(nlohmann::ordered_json& config) const override;
  std::string Compatibility(const std::vector<PlannedLinear>& linears) const override;
  int64_t StoredBits(const PlannedLinear& linear) const override;

  static std::string Refuses(const GridSpec& grid);

 private:
  CompressedTensorsLayout carrier_;  // symmetric, 4 bits
};

}  // namespace quantry::engine
