#include "worker/engine/methods/training/block_loss.h"

#include <ATen/core/grad_mode.h>

#include <torch/csrc/autograd/autograd.h>

#include "worker/engine/methods/awq/inputs.h"
#include "worker/engine/methods/batches.h"

namespace quantry::engine {
namespace {

using InputMax = std::map<int, at::Tensor>;

constexpr double kKeptOfMiddle = 0.99;  // by every further window

void TakeMax(const InputMax& from, InputMax& into) {
  for (const auto& [source, value] : from) {
    at::Tensor& max = into[source];
    max = max.defined() ? at::maximum(max, value) : value;
  }
}

// Halfway between extremes, [windows, channels] of x [windows, length, channels].
at::Tensor Middles(const at::Tensor& x) { return (x.amax(1) + x.amin(1)).mul_(0.5); }

// The moving average over the windows, [channels].
at::Tensor MovingAverage(const at::Tensor& windows) {
  at::Tensor average = windows.select(0, 0).clone();
  for (int64_t i = 1; i < windows.size(0); ++i) {
    average.mul_(kKeptOfMiddle).add_(windows.select(0, i), 1 - kKeptOfMiddle);
  }
  return average;
}

}  // namespace

BlockTargets MakeBlockTargets(const BlockTask& task, const BlockTargetOptions& options,
                              ProgressSink& progress) {
  const Block& block = task.block;
  const StreamShape stream{task.x_fp.size(0), task.x_fp.size(1)};
  const int workers = BatchWorkers(*block.config, stream, task.device);
  std::vector<InputMax> maxima(workers);
  std::map<int, at::Tensor> middles;  // [windows, channels], each batch its rows
  if (options.input_middle) {
    for (int i = 0; i < static_cast<int>(block.linears.size()); ++i) {
      if (InputSource(*block.architecture, i) != i) continue;
      middles[i] = at::empty({stream.windows, block.linears[i].weight.size(1)},
                             task.x_fp.options().device(task.device));
    }
  }
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
        if (options.input_middle) {
          middles.at(index).slice(0, batch.first, batch.last).copy_(Middles(x));
        }
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
  for (const auto& [source, windows] : middles) {
    targets.input_middle[source] = MovingAverage(windows);
  }
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
