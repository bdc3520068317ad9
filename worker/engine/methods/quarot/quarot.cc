#include "worker/engine/methods/quarot/quarot.h"

#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/gptq/gptq.h"
#include "worker/engine/methods/rtn/rtn.h"
#include "worker/engine/quant/grid_search.h"

namespace quantry::engine {
namespace {

Gptq MakeGptq(const QuarotOptions& options) {
  GptqOptions gptq;
  gptq.true_sequential = true;  // as QuaRot does
  gptq.search_clip = options.search_clip;
  return Gptq(gptq);
}

QuantizedLinear RoundOnSearchedGrid(const Linear& linear, const BlockTask& task) {
  const GroupGrid grid = SearchGrid(linear.weight, task.grid, task.scale_dtype);
  return MakeQuantizedLinear(linear.name, RoundToGrid(linear.weight, task.grid, grid), grid,
                             linear.bias, {task.grid, task.scale_dtype});
}

}  // namespace

int64_t Quarot::Steps(const Architecture& architecture, const ModelConfig& config,
                      const StreamShape& stream) const {
  if (options_.gptq) return MakeGptq(options_).Steps(architecture, config, stream);
  return Rtn().Steps(architecture, config, stream);
}

int64_t Quarot::WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                             const StreamShape& stream, const at::Device& device) const {
  return options_.gptq ? MakeGptq(options_).WorkingBytes(architecture, config, stream, device) : 0;
}

MethodResult Quarot::Quantize(const BlockTask& task, ProgressSink& progress) const {
  if (options_.gptq) return MakeGptq(options_).Quantize(task, progress);
  if (!options_.search_clip) return Rtn().Quantize(task, progress);
  MethodResult result;
  result.block.index = task.block.index;
  result.block.dense = DenseTensors(task.block, task.dense_dtypes);
  for (const Linear& linear : task.block.linears) {
    result.block.linears.push_back(RoundOnSearchedGrid(linear, task));
    progress.Advance(1, linear.name);
  }
  return result;
}

}  // namespace quantry::engine
