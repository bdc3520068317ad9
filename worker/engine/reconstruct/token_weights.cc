#include "worker/engine/reconstruct/token_weights.h"

#include <cmath>
#include <limits>

namespace quantry::engine {

namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

at::Tensor NormsOf(const at::Tensor& targets) {
  return at::linalg_vector_norm(targets, 2, at::IntArrayRef{-1}, true);
}

// The norm above which a token counts less.
double MostNorm(const at::Tensor& norms, double limit) {
  const double most = std::sqrt(limit) * norms.median().item<double>();
  // Tokens of no energy at all are no measure.
  return most == 0 || !(norms.max().item<double>() > most) ? kNoLimit : most;
}

}  // namespace

double MostTokenEnergy(const at::Tensor& targets, double limit) {
  if (limit <= 0) return kNoLimit;
  const double most = MostNorm(NormsOf(targets), limit);
  return most * most;
}

at::Tensor RootTokenWeights(const at::Tensor& targets, double limit) {
  if (limit <= 0) return {};
  const at::Tensor norms = NormsOf(targets);
  const double most = MostNorm(norms, limit);
  if (most == kNoLimit) return {};
  return norms.clamp_min(most).reciprocal_().mul_(most);
}

}  // namespace quantry::engine
