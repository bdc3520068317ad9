#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

at::Tensor QuantizedLinear::Dequantize() const {
  if (mixed) return mixed->Dequantize();
  const int64_t groups = scales.size(1);
  at::Tensor values = codes.to(at::kFloat).view({codes.size(0), groups, codes.size(1) / groups});
  values.sub_(zeros.to(at::kFloat).unsqueeze(-1)).mul_(scales.unsqueeze(-1));
  return values.view(codes.sizes());
}

}  // namespace quantry::engine
