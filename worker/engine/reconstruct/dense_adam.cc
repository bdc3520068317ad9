#include "worker/engine/reconstruct/dense_adam.h"

#include <algorithm>
#include <cmath>

namespace quantry::engine {
namespace {

constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.999;
constexpr double kEpsilon = 1e-8;
constexpr double kSmallestUnit = 1e-3;  // of a bias that is all zero

}  // namespace

DenseAdam::DenseAdam(const std::vector<at::Tensor>& tensors, Unit unit) {
  for (const at::Tensor& tensor : tensors) {
    means_.push_back(at::zeros_like(tensor));
    squares_.push_back(at::zeros_like(tensor));
    units_.push_back(unit == Unit::kOne
                         ? 1.0
                         : std::max(tensor.square().mean().sqrt().item<double>(), kSmallestUnit));
  }
}

void DenseAdam::Step(const std::vector<at::Tensor>& gradients, double rate,
                     std::vector<at::Tensor>& tensors) {
  ++step_;
  const double mean_correction = 1.0 - std::pow(kBeta1, step_);
  const double square_correction = std::sqrt(1.0 - std::pow(kBeta2, step_));
  for (size_t i = 0; i < tensors.size(); ++i) {
    means_[i].lerp_(gradients[i], 1.0 - kBeta1);
    squares_[i].mul_(kBeta2).addcmul_(gradients[i], gradients[i], 1.0 - kBeta2);
    const at::Tensor root = squares_[i].sqrt().div_(square_correction).add_(kEpsilon);
    tensors[i].addcdiv_(means_[i], root, -rate * units_[i] / mean_correction);
  }
}

std::vector<at::Tensor> DenseAdam::Moments() const {
  std::vector<at::Tensor> moments = means_;
  moments.insert(moments.end(), squares_.begin(), squares_.end());
  return moments;
}

void DenseAdam::Restore(int64_t steps, const std::vector<at::Tensor>& moments) {
  step_ = steps;
  for (size_t i = 0; i < means_.size(); ++i) {
    means_[i].copy_(moments.at(i));
    squares_[i].copy_(moments.at(means_.size() + i));
  }
}

}  // namespace quantry::engine
