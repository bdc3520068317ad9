#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <cstdint>

#include "worker/engine/reconstruct/soft_rounding.h"

// What tests hold SoftRounding against: its definition in ATen and autograd.
namespace quantry::engine::test {

// [rows, columns], about as large as a model's weights are.
inline at::Tensor RandomWeight(int64_t rows, int64_t columns, uint64_t seed = 3) {
  at::manual_seed(seed);
  return at::randn({rows, columns}) * 0.1;
}

// Adam of one tensor, written as it is defined (Kingma & Ba, algorithm 1).
class PlainAdam {
 public:
  // How much the tensor of gradient `g` goes down.
  at::Tensor Change(const at::Tensor& g, double rate) {
    ++steps_;
    mean_ = mean_ * 0.9 + g * 0.1;
    square_ = square_ * 0.999 + g * g * 0.001;
    return mean_ / (1 - std::pow(0.9, steps_)) /
           ((square_ / (1 - std::pow(0.999, steps_))).sqrt() + 1e-8) * rate;
  }

 private:
  int steps_ = 0;
  at::Tensor mean_ = at::zeros({}, at::kDouble);
  at::Tensor square_ = at::zeros({}, at::kDouble);
};

// Trains a definition: logits `nu` [groups, group size] and `v` [groups, 1],
// and Soft(), the weight they stand for, shaped as `nu`.
template <typename Definition>
class DefinitionTrainer {
 public:
  explicit DefinitionTrainer(Definition& definition) : definition_(definition) {}

  // What SoftRounding::Step does with the same arguments.
  void Step(const at::Tensor& gradient, const StepRates& rates) {
    definition_.nu = definition_.nu.detach().requires_grad_(true);
    definition_.v = definition_.v.detach().requires_grad_(true);
    (definition_.Soft() * gradient.to(at::kDouble).view(definition_.nu.sizes())).sum().backward();
    const c10::AutoGradMode no_gradients(false);
    const at::Tensor nu = definition_.nu.detach(), v = definition_.v.detach();
    const at::Tensor v_gradient = definition_.v.grad() + rates.scale_weight_decay * v;
    definition_.nu = nu - nu_adam_.Change(definition_.nu.grad(), rates.rounding);
    definition_.v = v - v_adam_.Change(v_gradient, rates.scale);
  }

 private:
  Definition& definition_;
  PlainAdam nu_adam_, v_adam_;
};

}  // namespace quantry::engine::test
