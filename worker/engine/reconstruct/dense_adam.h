#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace quantry::engine {

// Adam (betas 0.9 and 0.999, eps 1e-8) over a few small tensors, changed in
// place. A step of rate 1 moves an entry by about `unit` of its tensor.
class DenseAdam {
 public:
  enum class Unit {
    kOne,   // absolute
    kSize,  // the tensor's root mean square at the start
  };
  DenseAdam(const std::vector<at::Tensor>& tensors, Unit unit);

  void Step(const std::vector<at::Tensor>& gradients, double rate,
            std::vector<at::Tensor>& tensors);

  // Both moments of every tensor, means first: all there is beside the steps.
  std::vector<at::Tensor> Moments() const;
  // Goes on after `steps` steps.
  void Restore(int64_t steps, const std::vector<at::Tensor>& moments);

 private:
  int64_t step_ = 0;
  std::vector<at::Tensor> means_;
  std::vector<at::Tensor> squares_;
  std::vector<double> units_;
};

}  // namespace quantry::engine
