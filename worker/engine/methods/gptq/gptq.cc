#include "worker/engine/methods/gptq/gptq.h"

#include <set>
#include <utility>
#include <vector>

#include "worker/engine/methods/awq/inputs.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/gptq/hessian.h"
#include "worker/engine/quant/grid_search.h"

namespace quantry::engine {
namespace {

// Sources of the linears' inputs in the order of the forward pass.
std::vector<int> Sources(const Architecture& architecture) {
  std::set<int> sources;
  for (size_t i = 0; i < architecture.linears.size(); ++i) {
    sources.insert(InputSource(architecture, static_cast<int>(i)));
  }
  return {sources.begin(), sources.end()};
}

}  // namespace

int64_t Gptq::Steps(const Architecture& architecture, const ModelConfig&,
                    const StreamShape& stream) const {
  const auto passes =
      options_.true_sequential ? static_cast<int64_t>(Sources(architecture).size()) : int64_t{1};
  return passes * Batches(stream) + static_cast<int64_t>(architecture.linears.size());
}

int64_t Gptq::WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                           const StreamShape& stream, const at::Device& device) const {
  return MomentBytes(architecture, config, BatchWorkers(config, stream, device));
}

MethodResult Gptq::Quantize(const BlockTask& task, ProgressSink& progress) const {
  const Architecture& architecture = *task.block.architecture;
  const GridFit fit = [&](const at::Tensor& weight) {
    return options_.search_clip ? SearchGrid(weight, task.grid, task.scale_dtype)
                                : MinMaxGrid(weight, task.grid, task.scale_dtype);
  };
  MethodResult result;
  result.block.index = task.block.index;
  result.block.dense = DenseTensors(task.block, task.dense_dtypes);
  result.block.linears.resize(task.block.linears.size());
  Block block = task.block;
  const std::vector<int> sources = Sources(architecture);
  std::map<int, at::Tensor> hessians;
  if (!options_.true_sequential) {
    hessians = CollectHessians(task, block, {sources.begin(), sources.end()}, progress);
  }
  for (const int source : sources) {
    if (options_.true_sequential) hessians = CollectHessians(task, block, {source}, progress);
    for (size_t i = 0; i < block.linears.size(); ++i) {
      if (InputSource(architecture, static_cast<int>(i)) != source) continue;
      Linear& linear = block.linears[i];
      const RoundedColumns rounded =
          RoundColumns(linear.weight, hessians.at(source), task.grid, fit, options_.columns);
      result.metrics["loss." + linear.name] = rounded.loss;
      if (rounded.rounded_to_nearest) result.metrics[kNearestMetric + linear.name] = 1;
      if (rounded.damping > options_.columns.damping) {
        result.metrics["damping." + linear.name] = rounded.damping;
      }
      result.block.linears[i] = MakeQuantizedLinear(linear.name, rounded.codes, rounded.grid,
                                                    linear.bias, {task.grid, task.scale_dtype});
      if (options_.true_sequential) {
        linear.weight = result.block.linears[i].Dequantize().to(task.device);
      }
      progress.Advance(1, linear.name);
    }
  }
  return result;
}

}  // namespace quantry::engine
