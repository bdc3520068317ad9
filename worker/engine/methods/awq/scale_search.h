#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <vector>

#include "worker/engine/methods/awq/inputs.h"
#include "worker/engine/methods/method.h"

namespace quantry::engine {

// Outcome of one smoothing group's search.
struct GroupScale {
  SmoothingGroup group;
  at::Tensor scale;            // fp32 [in], multiplies the linears' columns
  double ratio = 0;            // the winner's exponent
  std::vector<double> losses;  // mean squared output error of every candidate
};

// Candidate scale: max(mean_abs^ratio, 1e-4), divided by sqrt(max * min)
// (spec: tesseraq.md 1.3, version v2). [in]
at::Tensor CandidateScale(const at::Tensor& mean_abs, double ratio);

// Whether a group is compared at the linear itself and inputs stay as they are:
// its search then needs the Gram matrix of its inputs, and no second pass over
// the tokens.
bool UsesGram(const SmoothingGroup& group, const ActivationSpec& activations);

// Searches `points` ratios for every usable smoothing group: W becomes
// fakequant(W diag(c)) diag(1/c) for the group's linears only, and the
// compared module's output over `windows` of task.x_fp, spread evenly, is set
// against the full-precision one. The first strict minimum wins. Groups compared at the
// linear itself use the Gram matrix of all its inputs, which gives the error
// without passing the tokens again: |dW x|^2 summed = tr(dW H dW^T). Where
// activations are quantized, the trial's input is x / c quantized per token.
// Every search looks at original weights only, so the order does not matter.
std::vector<GroupScale> SearchScales(const BlockTask& task,
                                     const std::map<int, InputStatistics>& inputs, int points,
                                     int64_t windows, ProgressSink& progress);

// Steps SearchScales advances by; `stream` is what it compares.
int64_t ScaleSearchSteps(const Architecture& architecture, const ModelConfig& config,
                         const StreamShape& stream, int points);

}  // namespace quantry::engine
