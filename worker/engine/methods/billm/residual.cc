#include "worker/engine/methods/billm/residual.h"

namespace quantry::engine {

Residual BinarizeResidual(const at::Tensor& weight, const at::Tensor& mask, int order) {
  const at::Tensor inside = mask.to(at::kFloat);
  const at::Tensor counts = inside.sum(1, /*keepdim=*/true).clamp_min_(1.0);
  Residual result;
  result.values = at::zeros_like(weight);
  for (int i = 0; i < order; ++i) {
    at::Tensor rest = weight.sub(result.values).mul_(inside);
    const at::Tensor mean = rest.sum(1, true).div_(counts);
    rest.sub_(mean).mul_(inside);
    const at::Tensor gain = rest.abs().sum(1, true).div_(counts);
    const at::Tensor signs = rest.ge(0).to(at::kFloat).mul_(2.0).sub_(1.0).mul_(inside);
    result.values.addcmul_(inside, mean).addcmul_(signs, gain);
    result.means.push_back(mean);
    result.gains.push_back(gain);
    result.signs.push_back(signs);
  }
  return result;
}

}  // namespace quantry::engine
