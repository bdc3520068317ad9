#include "worker/engine/methods/rtn/rtn.h"

#include "worker/engine/methods/block_weights.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {

int64_t Rtn::Steps(const Architecture& architecture, const ModelConfig&, const StreamShape&) const {
  return static_cast<int64_t>(architecture.linears.size());
}

MethodResult Rtn::Quantize(const BlockTask& task, ProgressSink& progress) const {
  MethodResult result;
  result.block.index = task.block.index;
  result.block.dense = DenseTensors(task.block, task.dense_dtypes);
  for (const Linear& linear : task.block.linears) {
    result.block.linears.push_back(
        QuantizeNearest(linear.name, linear.weight, linear.bias, task.grid, task.scale_dtype));
    progress.Advance(1, linear.name);
  }
  return result;
}

}  // namespace quantry::engine
