#include "worker/engine/export/accounting.h"

namespace quantry::engine {
BitAccounting CountBits(const Checkpoint& checkpoint, const std::vector<PlannedTensor>& plan,
                        const Layout& primary, uint64_t file_bytes) {
  BitAccounting bits;
  int64_t linear_bits = 0;
  uint64_t dense_bits = 0;
  for (const PlannedTensor& tensor : plan) {
    bits.dense_bytes += checkpoint.Info(tensor.source).bytes();
    if (tensor.kind != PlannedTensor::Kind::kLinear) {
      dense_bits += BytesOf(tensor.dense) * 8;
      continue;
    }
    bits.linear_weights += tensor.shape.out * tensor.shape.in;
    linear_bits += primary.LinearBits(tensor.Linear());
  }
  bits.parameters = checkpoint.parameters();
  bits.linears = static_cast<double>(linear_bits) / static_cast<double>(bits.linear_weights);
  bits.file = static_cast<double>(file_bytes) * 8 / static_cast<double>(bits.parameters);
  const auto stored = primary.format() == "dense" ? static_cast<uint64_t>(bits.linear_weights) * 16
                                                  : static_cast<uint64_t>(linear_bits);
  bits.theoretical_bytes = (stored + dense_bits + 7) / 8;
  return bits;
}

uint64_t OutputBytes(const std::vector<PlannedTensor>& plan, const Layout& layout) {
  uint64_t bytes = 0;
  for (const TensorSpec& spec : OutputSpecs(plan, layout)) bytes += BytesOf(spec);
  return bytes;
}

}  // namespace quantry::engine
