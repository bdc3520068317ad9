#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <limits>

namespace quantry::engine {

struct BlockLossOptions {
  double mse_weight = 1;
  double cosine_weight = 1;
  bool token_cosine = false;  // mean_t(-log c_t) instead of -log(mean_t c_t)
  // A token whose target (fp, q) has more energy counts in the squared errors as if
  // it had that (MostTokenEnergy); a cosine is of one size for every token.
  std::array<double, 2> most_energy = {std::numeric_limits<double>::infinity(),
                                       std::numeric_limits<double>::infinity()};
};

// Loss of one sample and its gradient (spec: ptq161.md 4.2):
//   sum over both targets of  mse_weight * mean(w_t (y - target)^2)
//                           - cosine_weight * log |mean_t cos(y_t, target_t)|
// with w_t = 1 but where most_energy says less.
struct BlockLoss {
  double mse = 0;     // both terms, unweighted
  double cosine = 0;  // both terms, unweighted
  double total = 0;
  // Cosines that were 0 or below, of the two (of 2T tokens with token_cosine):
  // |c| rewards what turned away even further.
  int64_t turned = 0;
  at::Tensor grad;  // dL/dy, the shape of y
};

// y, target_fp, target_q: fp32 [.., hidden], no autograd. A cosine below 1e-6
// counts as 1e-6: the loss ends there, the logarithm's pull grows no further.
BlockLoss TwoTargetLoss(const at::Tensor& y, const at::Tensor& target_fp,
                        const at::Tensor& target_q, const BlockLossOptions& options);

}  // namespace quantry::engine
