#include "worker/engine/methods/awq/awq.h"

#include <set>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/methods/awq/clip_search.h"
#include "worker/engine/methods/awq/fold.h"
#include "worker/engine/methods/awq/inputs.h"
#include "worker/engine/methods/awq/scale_search.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {
namespace {

// Sources whose Gram matrix the scale search wants.
std::set<int> GramSources(const Block& block) {
  std::set<int> sources;
  for (const SmoothingGroup& group : UsableSmoothingGroups(*block.architecture, *block.config)) {
    if (UsesGram(group)) sources.insert(InputSource(*block.architecture, group.linears.at(0)));
  }
  return sources;
}

// Scales `block` in place, and the sampled inputs with it.
void SmoothBlock(const BlockTask& task, int points, std::map<int, InputStatistics>& inputs,
                 Block& block, std::map<std::string, double>& metrics, ProgressSink& progress) {
  for (const GroupScale& found : SearchScales(task, inputs, points, progress)) {
    const at::Tensor scale = FoldScale(found.group, found.scale, task.dense_dtypes, block);
    const int source = InputSource(*block.architecture, found.group.linears.at(0));
    inputs.at(source).samples.div_(scale);
    const std::string& name = block.linears[found.group.linears.at(0)].name;
    metrics["scale_ratio." + name] = found.ratio;
  }
}

void CheckFinite(const Block& block, const Linear& linear) {
  if (at::isfinite(linear.weight).all().item<bool>()) return;
  const std::string index = std::to_string(block.index);
  throw UserError("NON_FINITE_LOSS",
                  StrCat("block ", index, ", ", linear.name,
                         ": the scaled and clipped weight is not finite; check the weights and "
                         "the calibration text, or try method rtn"),
                  {{"block", index}, {"step", "clip search of " + linear.name}});
}

}  // namespace

int64_t Awq::Steps(const Architecture& architecture, const ModelConfig& config,
                   const StreamShape& stream) const {
  int64_t steps = static_cast<int64_t>(architecture.linears.size());  // clip and round each
  if (!options_.search_scales && !options_.search_clip) return steps;
  steps += Batches(stream);
  if (!options_.search_scales) return steps;
  return steps + ScaleSearchSteps(architecture, config, stream, options_.scale_grid_points);
}

MethodResult Awq::Quantize(const BlockTask& task, ProgressSink& progress) const {
  MethodResult result;
  result.block.index = task.block.index;
  Block block = task.block;  // folding and clipping replace tensors, never write to them
  std::map<int, InputStatistics> inputs;
  if (options_.search_scales || options_.search_clip) {
    const bool gram = options_.search_scales;
    inputs = CollectInputs(task, gram ? GramSources(block) : std::set<int>(), progress);
  }
  if (options_.search_scales) {
    SmoothBlock(task, options_.scale_grid_points, inputs, block, result.metrics, progress);
  }
  double groups = 0;
  double clipped = 0;
  for (size_t i = 0; i < block.linears.size(); ++i) {
    Linear& linear = block.linears[i];
    if (options_.search_clip && MayClip(block.architecture->linears[i].role)) {
      const int source = InputSource(*block.architecture, static_cast<int>(i));
      const ClippedWeight found =
          SearchClip(linear.weight, inputs.at(source).samples, task.grid, task.scale_dtype);
      linear.weight = found.weight;
      groups += static_cast<double>(found.levels.numel());
      clipped += found.levels.ne(0).sum().item<double>();
    }
    CheckFinite(block, linear);
    result.block.linears.push_back(
        QuantizeNearest(linear.name, linear.weight, linear.bias, task.grid, task.scale_dtype));
    progress.Advance(1, linear.name);
  }
  if (groups > 0) result.metrics["clipped_share"] = clipped / groups;
  result.block.dense = DenseTensors(block, task.dense_dtypes);
  return result;
}

}  // namespace quantry::engine
