#include "worker/engine/methods/block_weights.h"

#include "worker/engine/base/error.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {

Block RoundToNearest(const Block& block, const GridSpec& grid, at::ScalarType scale_dtype,
                     const ActivationSpec& activations) {
  Block rounded = block;
  rounded.activations = activations;
  for (Linear& linear : rounded.linears) {
    linear.weight = FakeQuantize(linear.weight, grid, scale_dtype);
  }
  return rounded;
}

std::map<std::string, at::Tensor> DenseTensors(
    const Block& block, const std::map<std::string, at::ScalarType>& dtypes) {
  std::map<std::string, at::Tensor> dense;
  const auto add = [&](const std::string& key, const at::Tensor& value) {
    if (value.defined()) dense[key] = value.cpu().to(StorageDtype(dtypes, key)).contiguous();
  };
  for (const Norm& norm : block.norms) {
    add(norm.name + ".weight", norm.weight);
    add(norm.name + ".bias", norm.bias);
  }
  return dense;
}

Block Rebuild(const Block& source, const QuantizedBlock& quantized,
              const ActivationSpec& activations) {
  const auto device = source.linears.at(0).weight.device();
  Block block = source;
  block.activations = activations;
  for (const QuantizedLinear& from : quantized.linears) {
    const int index = block.LinearIndex(from.name);
    if (index < 0) {
      throw EngineError(FailureClass::kBug, "INTERNAL", "no linear " + from.name + " in the block");
    }
    Linear& linear = block.linears[index];
    linear.weight = from.Dequantize().to(device);
    linear.bias = from.bias.defined() ? from.bias.to(device) : at::Tensor();
  }
  const auto stored = [&](const std::string& key, at::Tensor& value) {
    const auto found = quantized.dense.find(key);
    if (found != quantized.dense.end()) value = found->second.to(device, at::kFloat);
  };
  for (Norm& norm : block.norms) {
    stored(norm.name + ".weight", norm.weight);
    stored(norm.name + ".bias", norm.bias);
  }
  return block;
}

at::Tensor RoundToStorage(const at::Tensor& value, at::ScalarType dtype) {
  return value.to(dtype).to(at::kFloat);
}

at::ScalarType StorageDtype(const std::map<std::string, at::ScalarType>& dtypes,
                            const std::string& key) {
  const auto found = dtypes.find(key);
  return found == dtypes.end() ? at::kFloat : found->second;
}

}  // namespace quantry::engine
