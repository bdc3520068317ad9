#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/model/shared_inputs.h"

namespace quantry::engine {

// What the searches need to know of one linear's inputs.
struct InputStatistics {
  at::Tensor mean_abs;  // fp32 [in], mean of |x| over all tokens
  at::Tensor gram;      // fp32 [in, in], sum of x x^T over all tokens; only if asked for
  at::Tensor samples;   // fp32 [about 512, in], every floor(T / 512)-th token
};

// Tokens of InputStatistics::samples.
int64_t SampledTokens(const StreamShape& stream);

// Inputs of every source linear (InputSource), [windows, length, in] each, in
// one forward pass of the full-precision block over x [windows, length, hidden].
std::map<int, at::Tensor> CaptureInputs(const Block& block, const RopeTable& rope,
                                        const at::Tensor& x);

// One pass over task.x_fp. `with_gram`: sources whose Gram matrix is wanted.
// Advances `progress` by Batches().
std::map<int, InputStatistics> CollectInputs(const BlockTask& task, const std::set<int>& with_gram,
                                             ProgressSink& progress);

}  // namespace quantry::engine
