#include "worker/engine/export/accounting.h"

namespace quantry::engine {
BitAccounting CountBits(const Checkpoint& given, const std::vector<PlannedTensor>& plan,
                        const Layout& primary, uint64_t file_bytes) {
  BitAccounting bits;
  for (const std::string& name : given.names()) bits.dense_bytes += given.Info(name).bytes();
  int64_t linear_bits = 0;
  for (const PlannedTensor& tensor : plan) {
    if (tensor.kind != PlannedTensor::Kind::kLinear) continue;
    bits.linear_weights += tensor.shape.out * tensor.shape.in;
    linear_bits += primary.LinearBits(tensor.Linear());
  }
  bits.parameters = given.parameters();
  bits.linears = static_cast<double>(linear_bits) / static_cast<double>(bits.linear_weights);
  bits.file = static_cast<double>(file_bytes) * 8 / static_cast<double>(bits.parameters);
  bits.theoretical_bytes = TheoreticalBytes(plan, primary);
  return bits;
}

double StoredBitsPerWeight(const std::vector<PlannedTensor>& plan, const Layout& layout) {
  int64_t bits = 0;
  int64_t weights = 0;
  for (const PlannedTensor& tensor : plan) {
    if (tensor.kind != PlannedTensor::Kind::kLinear) continue;
    bits += layout.StoredBits(tensor.Linear());
    weights += tensor.shape.out * tensor.shape.in;
  }
  return static_cast<double>(bits) / static_cast<double>(weights);
}

uint64_t TheoreticalBytes(const std::vector<PlannedTensor>& plan, const Layout& layout) {
  uint64_t bits = 0;
  for (const PlannedTensor& tensor : plan) {
    bits += tensor.kind == PlannedTensor::Kind::kLinear
                ? static_cast<uint64_t>(layout.StoredBits(tensor.Linear()))
                : BytesOf(tensor.dense) * 8;
  }
  return (bits + 7) / 8;
}

uint64_t OutputBytes(const std::vector<PlannedTensor>& plan, const Layout& layout) {
  uint64_t bytes = 0;
  for (const TensorSpec& spec : OutputSpecs(plan, layout)) bytes += BytesOf(spec);
  return bytes;
}

}  // namespace quantry::engine
