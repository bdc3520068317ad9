#include "worker/engine/methods/training/block_loss.h"

#include <ATen/core/grad_mode.h>

#include <torch/csrc/autograd/autograd.h>

#include "worker/engine/methods/awq/inputs.h"
#include "worker/engine/methods/batches.h"

namespace quantry::engine {
namespace {

using InputMax = std::map<int, at::Tensor>;

void TakeMax(const InputMax& from, InputMax& into) {
  for (const auto& [source, value] : from) {
    at::Tensor& max = into[source];
    max = max.defined() ? at::maximum(max, value) : value;
  }
}

}  // namespace

BlockTargets MakeBlockTargets(const BlockTask& task, const BlockTargetOptions& options,
                              ProgressSink& progress) {
  const Block& block = task.block;
  const StreamShape stream{task.x_fp.size(0), task.x_fp.size(1)};
  const int workers = BatchWorkers(*block.config, stream, task.device);
  std::vector<InputMax> maxima(workers);
  BlockTargets targets;
  targets.outputs = at::empty_like(task.x_fp);
  ForEachBatch(stream, workers, [&](int worker, const Batch& batch) {
    const at::NoGradGuard no_grad;
    const auto part = [&](const at::Tensor& x) {
      return x.slice(0, batch.first, batch.last).to(task.device);
    };
    InputMax max;
    const auto record = [&](int index, const at::Tensor& x) {
      if (InputSource(*block.architecture, index) == index) {
        max[index] = x.abs().amax(at::IntArrayRef{0, 1});
      }
      return block.Apply(index, x);
    };
    at::Tensor wanted = block.Forward(part(task.x_fp), task.rope, record);
    if (options.average_with_prefix) {
      wanted = (wanted + block.Forward(part(task.x_q), task.rope)).mul_(0.5);
    }
    targets.outputs.slice(0, batch.first, batch.last).copy_(wanted);
    TakeMax(max, maxima[worker]);
    progress.Advance(1, "collecting targets");
  });
  for (const InputMax& max : maxima) TakeMax(max, targets.input_max);
  return targets;
}

int64_t BlockTargetSteps(const StreamShape& stream) { return Batches(stream); }

std::vector<at::Tensor> Gradients(const at::Tensor& loss,
                                  const std::vector<at::Tensor>& parameters) {
  return torch::autograd::grad({loss}, parameters, /*grad_outputs=*/{},
                               /*retain_graph=*/std::nullopt, /*create_graph=*/false,
                               /*allow_unused=*/true);
}

}  // namespace quantry::engine
