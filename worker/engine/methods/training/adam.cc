#include "worker/engine/methods/training/adam.h"

#include <ATen/core/grad_mode.h>

#include <cmath>

namespace quantry::engine {
namespace {

constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.999;
constexpr double kEpsilon = 1e-8;

}  // namespace

void Adam::Step(const std::vector<at::Tensor>& gradients) {
  const at::NoGradGuard no_grad;
  ++steps_;
  const double correction1 = 1.0 - std::pow(kBeta1, static_cast<double>(steps_));
  const double correction2 = 1.0 - std::pow(kBeta2, static_cast<double>(steps_));
  for (size_t i = 0; i < slots_.size(); ++i) {
    const at::Tensor& gradient = gradients.at(i);
    if (!gradient.defined()) continue;
    Slot& slot = slots_[i];
    slot.first.mul_(kBeta1).add_(gradient, 1.0 - kBeta1);
    slot.second.mul_(kBeta2).addcmul_(gradient, gradient, 1.0 - kBeta2);
    const at::Tensor root = slot.second.sqrt().div_(std::sqrt(correction2)).add_(kEpsilon);
    slot.parameter.addcdiv_(slot.first, root, -slot.rate / correction1);
  }
}

}  // namespace quantry::engine
