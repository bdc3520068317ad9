#include "worker/engine/reconstruct/adam.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace quantry::engine {
namespace {

constexpr double kSmallestSize = 1e-3;  // of a bias that is all zero

}  // namespace

void Adam::Add(at::Tensor tensor, double rate) { Push({std::move(tensor), rate, {}, {}, {}}); }

void Adam::Add(at::Tensor tensor, const at::Tensor& rates) {
  Push({std::move(tensor), 0, rates, {}, {}});
}

void Adam::Push(Slot slot) {
  slot.mean = at::zeros_like(slot.tensor, slot.tensor.options().requires_grad(false));
  slot.square = slot.mean.clone();
  slots_.push_back(std::move(slot));
}

std::vector<at::Tensor> Adam::tensors() const {
  std::vector<at::Tensor> all;
  for (const Slot& slot : slots_) all.push_back(slot.tensor);
  return all;
}

void Adam::Step(const std::vector<at::Tensor>& gradients, double scale) {
  const at::NoGradGuard no_grad;
  ++steps_;
  const auto steps = static_cast<double>(steps_);
  const double mean_correction = 1.0 - std::pow(kAdamBeta1, steps);
  const double square_correction = std::sqrt(1.0 - std::pow(kAdamBeta2, steps));
  for (size_t i = 0; i < slots_.size(); ++i) {
    const at::Tensor& gradient = gradients.at(i);
    if (!gradient.defined()) continue;
    Slot& slot = slots_[i];
    slot.mean.lerp_(gradient, 1.0 - kAdamBeta1);
    slot.square.mul_(kAdamBeta2).addcmul_(gradient, gradient, 1.0 - kAdamBeta2);
    const at::Tensor root = slot.square.sqrt().div_(square_correction).add_(kAdamEpsilon);
    if (slot.rates.defined()) {
      slot.tensor.addcdiv_(slot.mean * slot.rates, root, -scale / mean_correction);
    } else {
      slot.tensor.addcdiv_(slot.mean, root, -scale * slot.rate / mean_correction);
    }
  }
}

std::vector<at::Tensor> Adam::Moments() const {
  std::vector<at::Tensor> moments;
  for (const Slot& slot : slots_) moments.push_back(slot.mean);
  for (const Slot& slot : slots_) moments.push_back(slot.square);
  return moments;
}

void Adam::Forget() {
  steps_ = 0;
  for (Slot& slot : slots_) {
    slot.mean.zero_();
    slot.square.zero_();
  }
}

void Adam::Restore(int64_t steps, const std::vector<at::Tensor>& moments) {
  steps_ = steps;
  for (size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].mean.copy_(moments.at(i));
    slots_[i].square.copy_(moments.at(slots_.size() + i));
  }
}

double SizeOf(const at::Tensor& tensor) {
  return std::max(tensor.square().mean().sqrt().item<double>(), kSmallestSize);
}

}  // namespace quantry::engine
