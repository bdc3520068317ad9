#include "worker/engine/methods/ptq161/block_loss.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "worker/engine/base/parallel.h"
#include "worker/engine/nn/simd_kernels.h"

namespace quantry::engine {
namespace {

constexpr double kLeastCosine = 1e-6;
constexpr double kLeastNorm = 1e-8;  // of a token's hidden state
constexpr int64_t kGrain = 64;       // tokens one task takes

using Targets = std::array<at::Tensor, 2>;

// What the loss needs to know of a token, and what its gradient then is made with:
//   grad = y * of_y + targets[0] * of_targets[0] + targets[1] * of_targets[1]
struct TokenSums {
  double y_y;
  struct OfTarget {
    double target_target, y_target, squared_error;
  };
  std::array<OfTarget, 2> of;
};
struct TokenFactors {
  double of_y;
  std::array<double, 2> of_targets;
};
constexpr int64_t kSums = sizeof(TokenSums) / sizeof(double);
constexpr int64_t kFactors = sizeof(TokenFactors) / sizeof(double);

bool Fuses(const at::Tensor& y) {
  return y.is_cpu() && y.scalar_type() == at::kFloat && simd::Available();
}

// fp64 [T, kSums], on the CPU; y and targets [T, hidden], contiguous.
at::Tensor SumsOf(const at::Tensor& y, const Targets& targets) {
  if (!Fuses(y)) {
    std::vector<at::Tensor> sums = {y.square().sum(1)};
    for (const at::Tensor& target : targets) {
      sums.insert(sums.end(),
                  {target.square().sum(1), (y * target).sum(1), (y - target).square().sum(1)});
    }
    return at::stack(sums, 1).to(at::kDouble).cpu();
  }
  const int64_t tokens = y.size(0), width = y.size(1);
  at::Tensor sums = at::empty({tokens, kSums}, at::kDouble);
  auto* all = reinterpret_cast<TokenSums*>(sums.mutable_data_ptr<double>());
  const auto* own = y.const_data_ptr<float>();
  const std::array<const float*, 2> wanted = {targets[0].const_data_ptr<float>(),
                                              targets[1].const_data_ptr<float>()};
  ForEachIndex(tokens, kGrain, [&](int64_t t) {
    const float* row = own + t * width;
    all[t].y_y = simd::Dot(row, row, width);
    for (size_t i = 0; i < wanted.size(); ++i) {
      const float* target = wanted[i] + t * width;
      all[t].of[i] = {simd::Dot(target, target, width), simd::Dot(row, target, width),
                      simd::SquaredDistance(row, target, width)};
    }
  });
  return sums;
}

// The gradient, in y's shape and type; factors: fp64 [T, kFactors].
at::Tensor Combine(const at::Tensor& y, const Targets& targets, const at::Tensor& factors) {
  if (!Fuses(y)) {
    const at::Tensor there = factors.to(y.options());
    const auto column = [&](int64_t i) { return there.slice(1, i, i + 1); };
    return (y * column(0)).addcmul_(targets[0], column(1)).addcmul_(targets[1], column(2));
  }
  const int64_t width = y.size(1);
  at::Tensor grad = at::empty_like(y);
  const auto* all = reinterpret_cast<const TokenFactors*>(factors.const_data_ptr<double>());
  const auto *own = y.const_data_ptr<float>(), *first = targets[0].const_data_ptr<float>(),
             *second = targets[1].const_data_ptr<float>();
  auto* to = grad.mutable_data_ptr<float>();
  ForEachIndex(y.size(0), kGrain, [&](int64_t t) {
    const int64_t at = t * width;
    const TokenFactors& f = all[t];
    simd::WeightedSum({own + at, static_cast<float>(f.of_y)},
                      {first + at, static_cast<float>(f.of_targets[0])},
                      {second + at, static_cast<float>(f.of_targets[1])}, width, to + at);
  });
  return grad;
}

double NormOf(double squares) { return std::max(std::sqrt(squares), kLeastNorm); }

// Adds target `i`'s part of the loss to `loss` and of its gradient to `factors`.
class TargetTerm {
 public:
  TargetTerm(const TokenSums* sums, int64_t tokens, size_t i, const BlockLossOptions& options)
      : sums_(sums), tokens_(tokens), i_(i), options_(options) {}

  void AddErrors(double elements, BlockLoss& loss, TokenFactors* factors) const {
    double total = 0;
    for (int64_t t = 0; t < tokens_; ++t) {
      const TokenSums::OfTarget& of = sums_[t].of[i_];
      const double most = options_.most_energy[i_];
      const double weight = of.target_target > most ? most / of.target_target : 1.0;
      const double slope = 2.0 * options_.mse_weight * weight / elements;
      total += weight * of.squared_error;
      factors[t].of_y += slope;
      factors[t].of_targets[i_] -= slope;
    }
    loss.mse += total / elements;
  }

  // -log|c|; d cos_t / dy = target / (|y| |target|) - cos_t y / |y|^2.
  void AddCosines(BlockLoss& loss, TokenFactors* factors) const {
    const auto tokens = static_cast<double>(tokens_);
    double mean = 0, mean_log = 0;
    for (int64_t t = 0; t < tokens_; ++t) {
      mean += Cosine(t) / tokens;
      if (!options_.token_cosine) continue;
      mean_log += std::log(Bounded(Cosine(t))) / tokens;
      if (Cosine(t) <= 0) ++loss.turned;
    }
    if (!options_.token_cosine && mean <= 0) ++loss.turned;
    loss.cosine -= options_.token_cosine ? mean_log : std::log(Bounded(mean));
    const double of_mean = (mean < 0 ? -1.0 : 1.0) / Bounded(mean);
    for (int64_t t = 0; t < tokens_; ++t) {
      const double cosine = Cosine(t), norm = NormOf(sums_[t].y_y);
      const double sign = cosine > 0 ? 1.0 : (cosine < 0 ? -1.0 : 0.0);
      const double slope = options_.cosine_weight / tokens *
                           (options_.token_cosine ? sign / Bounded(cosine) : of_mean);
      factors[t].of_targets[i_] -= slope / (norm * NormOf(sums_[t].of[i_].target_target));
      factors[t].of_y += slope * cosine / (norm * norm);
    }
  }

 private:
  static double Bounded(double cosine) { return std::max(std::abs(cosine), kLeastCosine); }
  double Cosine(int64_t t) const {
    const TokenSums::OfTarget& of = sums_[t].of[i_];
    return of.y_target / (NormOf(sums_[t].y_y) * NormOf(of.target_target));
  }

  const TokenSums* sums_;
  int64_t tokens_;
  size_t i_;
  const BlockLossOptions& options_;
};

}  // namespace

BlockLoss TwoTargetLoss(const at::Tensor& y, const at::Tensor& target_fp,
                        const at::Tensor& target_q, const BlockLossOptions& options) {
  const auto flat = [](const at::Tensor& v) { return v.reshape({-1, v.size(-1)}).contiguous(); };
  const at::Tensor out = flat(y);
  const Targets targets = {flat(target_fp), flat(target_q)};
  const int64_t tokens = out.size(0);
  const at::Tensor sums = SumsOf(out, targets);
  const at::Tensor factors = at::zeros({tokens, kFactors}, at::kDouble);
  const auto* of_sums = reinterpret_cast<const TokenSums*>(sums.const_data_ptr<double>());
  auto* of_factors = reinterpret_cast<TokenFactors*>(factors.mutable_data_ptr<double>());
  BlockLoss loss;
  for (size_t i = 0; i < targets.size(); ++i) {
    const TargetTerm term(of_sums, tokens, i, options);
    term.AddErrors(static_cast<double>(out.numel()), loss, of_factors);
    if (options.cosine_weight != 0) term.AddCosines(loss, of_factors);
  }
  loss.total = options.mse_weight * loss.mse + options.cosine_weight * loss.cosine;
  loss.grad = Combine(out, targets, factors).view(y.sizes());
  return loss;
}

}  // namespace quantry::engine
