#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

at::Tensor QuantizedLinear::Dequantize() const {
  if (mixed) return mixed->Dequantize();
  if (values.defined()) return values.to(at::kFloat);
  const int64_t groups = scales.size(1);
  at::Tensor weight = codes.to(at::kFloat).view({codes.size(0), groups, codes.size(1) / groups});
  weight.sub_(zeros.to(at::kFloat).unsqueeze(-1)).mul_(scales.unsqueeze(-1));
  return weight.view(codes.sizes());
}

}  // namespace quantry::engine
