#pragma once

#include <ATen/ATen.h>

#include <map>
#include <set>

#include "worker/engine/methods/method.h"

namespace quantry::engine {

// H = 2/N sum x x^T, fp32 [in, in], over all tokens of N windows, of the inputs
// of every source linear in `sources` (InputSource), when `block` runs over
// task.x_q (spec: baselines.md 1.1). Linears with the same input share it.
// Advances `progress` by Batches(). Throws NON_FINITE_LOSS.
std::map<int, at::Tensor> CollectHessians(const BlockTask& task, const Block& block,
                                          const std::set<int>& sources, ProgressSink& progress);

// Upper triangular U with (H + d mean(diag H) I)^-1 = U^T U, and the damping d
// that made H positive definite: the one asked for, else ten times as much and
// so on up to 1, each in fp32 and then fp64. `upper` is undefined when none did.
struct InverseFactor {
  at::Tensor upper;  // fp32 [in, in]
  double damping = 0;
};
InverseFactor FactorInverse(const at::Tensor& hessian, double damping);

// What second moments take at most: those of all inputs of a block as a sum for
// each of `workers`, and then `kept` times over, and what factorizing the largest
// takes beside.
int64_t MomentBytes(const Architecture& architecture, const ModelConfig& config, int workers,
                    int kept = 1);

}  // namespace quantry::engine
