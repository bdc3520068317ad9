#include "worker/engine/methods/ptq161/block_loss.h"

#include <algorithm>
#include <cmath>

namespace quantry::engine {
namespace {

constexpr double kLeastCosine = 1e-6;
constexpr double kLeastNorm = 1e-8;  // of a token's hidden state

// Adds -weight * d log|c| / dy to `grad`, and to `turned` the cosines that are
// not above 0; returns -log|c|. All [T, hidden].
//   d cos_t / dy = target / (|y| |target|) - cos_t y / |y|^2
double AddCosine(const at::Tensor& y, const at::Tensor& target, const BlockLossOptions& options,
                 at::Tensor& grad, int64_t& turned) {
  const auto norm = [](const at::Tensor& v) {
    return v.square().sum(1, /*keepdim=*/true).sqrt_().clamp_min_(kLeastNorm);
  };
  const at::Tensor y_norm = norm(y);
  const at::Tensor both = y_norm * norm(target);
  const at::Tensor cosine = (y * target).sum(1, /*keepdim=*/true).div_(both);
  const auto tokens = static_cast<double>(y.size(0));
  double value = 0;
  at::Tensor outer;  // -dL/dcos_t, [T, 1]
  if (options.token_cosine) {
    const at::Tensor bounded = cosine.abs().clamp_min(kLeastCosine);
    value = -bounded.log().mean().item<double>();
    outer = cosine.sign().div_(bounded).mul_(1.0 / tokens);
    turned += cosine.le(0.0).sum().item<int64_t>();
  } else {
    const double mean = cosine.mean(at::kDouble).item<double>();
    const double bounded = std::max(std::abs(mean), kLeastCosine);
    value = -std::log(bounded);
    turned += mean <= 0 ? 1 : 0;
    outer = at::full_like(cosine, (mean < 0 ? -1.0 : 1.0) / (bounded * tokens));
  }
  outer.mul_(options.cosine_weight);
  grad.addcmul_(target, outer / both, -1.0);
  grad.addcmul_(y, outer * cosine / y_norm.square(), 1.0);
  return value;
}

}  // namespace

BlockLoss TwoTargetLoss(const at::Tensor& y, const at::Tensor& target_fp,
                        const at::Tensor& target_q, const BlockLossOptions& options) {
  const auto flat = [](const at::Tensor& v) { return v.reshape({-1, v.size(-1)}); };
  const at::Tensor out = flat(y);
  const auto elements = static_cast<double>(out.numel());
  BlockLoss loss;
  at::Tensor grad = at::zeros_like(out);
  for (const at::Tensor& target : {flat(target_fp), flat(target_q)}) {
    const at::Tensor error = out - target;
    loss.mse += error.square().mean(at::kDouble).item<double>();
    grad.add_(error, 2.0 * options.mse_weight / elements);
    if (options.cosine_weight != 0)
      loss.cosine += AddCosine(out, target, options, grad, loss.turned);
  }
  loss.total = options.mse_weight * loss.mse + options.cosine_weight * loss.cosine;
  loss.grad = grad.view(y.sizes());
  return loss;
}

}  // namespace quantry::engine
