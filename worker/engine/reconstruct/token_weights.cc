#include "worker/engine/reconstruct/token_weights.h"

#include <cmath>

namespace quantry::engine {

at::Tensor RootTokenWeights(const at::Tensor& targets, double limit) {
  if (limit <= 0) return {};
  const at::Tensor norms = at::linalg_vector_norm(targets, 2, at::IntArrayRef{-1}, true);
  const double most = std::sqrt(limit) * norms.median().item<double>();
  // Tokens of no energy at all are no measure.
  if (most == 0 || !(norms.max().item<double>() > most)) return {};
  return norms.clamp_min(most).reciprocal_().mul_(most);
}

}  // namespace quantry::engine
