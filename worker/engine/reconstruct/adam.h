#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace quantry::engine {

inline constexpr double kAdamBeta1 = 0.9;
inline constexpr double kAdamBeta2 = 0.999;
inline constexpr double kAdamEpsilon = 1e-8;

// Of one variable with its moments: the direction to go down, in units of the rate.
struct AdamStep {
  float mean_correction;    // 1 / (1 - beta1^t)
  float square_correction;  // 1 / sqrt(1 - beta2^t)

  float Direction(float gradient, float& mean, float& square) const {
    constexpr auto kRest1 = static_cast<float>(1.0 - kAdamBeta1);
    constexpr auto kRest2 = static_cast<float>(1.0 - kAdamBeta2);
    mean += (gradient - mean) * kRest1;
    square = square * static_cast<float>(kAdamBeta2) + gradient * gradient * kRest2;
    return mean * mean_correction /
           (std::sqrt(square) * square_correction + static_cast<float>(kAdamEpsilon));
  }
};

// Adam (Kingma & Ba 2015), betas 0.9 and 0.999, eps 1e-8, without weight decay:
// what AdamW is when its decay is 0. Tensors are changed in place; each has a
// rate, about what a step moves its entries by. Holds two moments of each
// tensor's size.
class Adam {
 public:
  void Add(at::Tensor tensor, double rate);
  // A rate for every entry.
  void Add(at::Tensor tensor, const at::Tensor& rates);

  // All tensors, in the order they were added: what to differentiate by.
  std::vector<at::Tensor> tensors() const;

  // One step along -gradients, all rates times `scale`; an undefined gradient
  // leaves its tensor.
  void Step(const std::vector<at::Tensor>& gradients, double scale = 1);

  // Both moments of every tensor, means first: all there is beside the steps.
  std::vector<at::Tensor> Moments() const;
  // Moments and steps are as at the beginning; tensors stay.
  void Forget();
  // Goes on after `steps` steps.
  void Restore(int64_t steps, const std::vector<at::Tensor>& moments);

 private:
  struct Slot {
    at::Tensor tensor;
    double rate = 0;
    at::Tensor rates;  // instead of `rate` where defined
    at::Tensor mean;
    at::Tensor square;
  };
  void Push(Slot slot);

  std::vector<Slot> slots_;
  int64_t steps_ = 0;
};

// Root mean square of a tensor, at least 1e-3: the unit of a rate that suits
// tensors of any size.
double SizeOf(const at::Tensor& tensor);

}  // namespace quantry::engine
