#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <string>

namespace quantry::engine {

// An orthonormal transform of vectors of size n,
//   M = (H_K (x) S_(n/K)) / sqrt(n),  x -> M x,
// S Sylvester's matrix of a power of two, H_K a Hadamard matrix (entries +-1,
// H_K H_K^T = K I) of the smallest order K that has a construction here and
// leaves a power of two (spec: baselines.md 3.5): 1, 2, Paley I, Paley II, and
// Williamson for 172. H_K need not be symmetric, so weight rows take the same
// M as activations. Immutable, thread-safe.
class Hadamard {
 public:
  // Nothing when no order K fits n.
  static std::optional<Hadamard> OfSize(int64_t n);

  // M on the last dimension of x [..., n], in x's own dtype; differentiable.
  at::Tensor Apply(const at::Tensor& x) const;
  // M^T on the last dimension.
  at::Tensor ApplyTransposed(const at::Tensor& x) const;

  int64_t size() const { return size_; }
  int64_t order() const { return factor_.size(0); }                  // K
  const at::Tensor& factor() const { return factor_; }               // H_K, fp64 [K, K]
  const std::string& construction() const { return construction_; }  // "paley-1"

 private:
  Hadamard() = default;
  at::Tensor Transform(const at::Tensor& x, const at::Tensor& factor) const;

  int64_t size_ = 0;
  at::Tensor factor_;
  std::string construction_;
};

}  // namespace quantry::engine
