#pragma once

#include <ATen/ATen.h>

namespace quantry::engine {

// The energy (sum of squares over hidden) above which a token's output counts
// less: `limit` times the median token's; infinity where `limit` is 0 or no token
// exceeds it. targets: fp32 [windows, length, hidden] in host memory.
double MostTokenEnergy(const at::Tensor& targets, double limit);

// What a token's error counts in a block's loss: a token whose output has more
// than `limit` times the median energy (sum of squares over hidden) counts as
// if it had that, min(1, limit * median / energy). Large models give the first
// token of a window, or delimiters, thousands of times the energy of others
// (massive activations, Sun et al., arXiv 2402.17762): its error, however small
// beside its size, would be nearly all of a sum of squares.
//
// targets: fp32 [windows, length, hidden] in host memory. Returns the square
// roots of the weights, fp32 [windows, length, 1]; undefined where `limit` is 0
// or no token exceeds it.
at::Tensor RootTokenWeights(const at::Tensor& targets, double limit);

}  // namespace quantry::engine
