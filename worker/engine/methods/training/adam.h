#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace quantry::engine {

// Adam (Kingma & Ba 2015) without weight decay, betas (0.9, 0.999), eps 1e-8:
// what AdamW is when its decay is 0. Every group of parameters has its rate.
// Holds two moments of each parameter's size.
class Adam {
 public:
  void Add(at::Tensor parameter, double rate) {
    const at::Tensor moment = at::zeros_like(parameter, parameter.options().requires_grad(false));
    slots_.push_back({std::move(parameter), moment, moment.clone(), rate});
  }

  // All parameters, in the order they were added: what to differentiate by.
  std::vector<at::Tensor> parameters() const {
    std::vector<at::Tensor> all;
    for (const Slot& slot : slots_) all.push_back(slot.parameter);
    return all;
  }

  // One step along -gradients; an undefined gradient leaves its parameter.
  void Step(const std::vector<at::Tensor>& gradients);

 private:
  struct Slot {
    at::Tensor parameter;
    at::Tensor first;
    at::Tensor second;
    double rate;
  };
  std::vector<Slot> slots_;
  int64_t steps_ = 0;
};

}  // namespace quantry::engine
