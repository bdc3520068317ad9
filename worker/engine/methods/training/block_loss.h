#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <vector>

#include "worker/engine/methods/method.h"

namespace quantry::engine {

// What a block is trained towards.
struct BlockTargets {
  at::Tensor outputs;  // fp32 [windows, length, hidden], host memory
  // Largest |x| per channel of each source linear's input, on the original chain.
  std::map<int, at::Tensor> input_max;
  // If asked for: halfway between the largest and the smallest value per channel of such an input,
  // averaged over the windows in order with 0.99 for what came before (spec: baselines.md 2.2).
  std::map<int, at::Tensor> input_middle;
};

struct BlockTargetOptions {
  // The mean of the original block's outputs on the original chain and on the
  // quantized prefix: the squared errors against both differ from twice that
  // against their mean only by a constant.
  bool average_with_prefix = false;
  bool input_middle = false;
};

// One pass of the original block over task.x_fp. Advances by BlockTargetSteps.
BlockTargets MakeBlockTargets(const BlockTask& task, const BlockTargetOptions& options,
                              ProgressSink& progress);
int64_t BlockTargetSteps(const StreamShape& stream);

// d(loss) / d(parameters); undefined where the loss does not depend on one.
std::vector<at::Tensor> Gradients(const at::Tensor& loss,
                                  const std::vector<at::Tensor>& parameters);

}  // namespace quantry::engine
