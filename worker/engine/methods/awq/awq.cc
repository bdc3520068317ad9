#include "worker/engine/methods/awq/awq.h"

#include <algorithm>
#include <set>

#include "worker/engine/base/non_finite.h"
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
std::set<int> GramSources(const Architecture& architecture, const ModelConfig& config,
                          const ActivationSpec& activations) {
  std::set<int> sources;
  for (const SmoothingGroup& group : UsableSmoothingGroups(architecture, config)) {
    if (!UsesGram(group, activations)) continue;
    sources.insert(InputSource(architecture, group.linears.at(0)));
  }
  return sources;
}

// What the scale search compares.
StreamShape Compared(const AwqOptions& options, const StreamShape& stream) {
  const int64_t windows = (options.search_tokens + stream.length - 1) / stream.length;
  return {std::clamp<int64_t>(windows, 1, stream.windows), stream.length};
}

// Scales the block in place. Returns the scale of every source of inputs.
std::map<int, at::Tensor> SmoothBlock(const BlockTask& task, const AwqOptions& options,
                                      const std::map<int, InputStatistics>& inputs,
                                      AwqBlock& result, ProgressSink& progress) {
  std::map<int, at::Tensor> scales;
  const StreamShape compared = Compared(options, {task.x_fp.size(0), task.x_fp.size(1)});
  for (const GroupScale& found :
       SearchScales(task, inputs, options.scale_grid_points, compared.windows, progress)) {
    const int first = found.group.linears.at(0);
    scales[InputSource(*task.block.architecture, first)] =
        FoldScale(found.group, found.scale, task.dense_dtypes, result.block);
    result.metrics["scale_ratio." + result.block.linears[first].name] = found.ratio;
  }
  return scales;
}

// Clamps the weights in place.
void ClipBlock(const BlockTask& task, const std::map<int, InputStatistics>& inputs,
               AwqBlock& result, ProgressSink& progress) {
  double groups = 0;
  double clipped = 0;
  for (size_t i = 0; i < result.block.linears.size(); ++i) {
    Linear& linear = result.block.linears[i];
    if (MayClip(task.block.architecture->linears[i].role)) {
      const int source = InputSource(*task.block.architecture, static_cast<int>(i));
      const ClippedWeight found =
          SearchClip(linear.weight, {inputs.at(source).samples, task.activations}, task.grid,
                     task.scale_dtype);
      linear.weight = found.weight;
      groups += static_cast<double>(found.levels.numel());
      clipped += found.levels.ne(0).sum().item<double>();
    }
    progress.Advance(1, linear.name);
  }
  if (groups > 0) result.metrics["clipped_share"] = clipped / groups;
}

void CheckFinite(const Block& block, const Linear& linear) {
  if (AllFinite(linear.weight)) return;
  throw NonFiniteLoss(block.index, "clip search of " + linear.name,
                      "the scaled and clipped weight is not finite; check the weights and the "
                      "calibration text, or try method rtn");
}

// Makes `inputs`, those of the scale search if there was one, what the clip
// search samples: of `stream`, scaled as the block's are by then.
void TakeClipInputs(const BlockTask& task, const at::Tensor& stream,
                    const std::map<int, at::Tensor>& scales, std::map<int, InputStatistics>& inputs,
                    ProgressSink& progress) {
  if (!inputs.empty() && stream.is_same(task.x_fp)) {
    progress.Advance(Batches({stream.size(0), stream.size(1)}), "inputs of the scale search");
  } else {
    BlockTask other = task;
    other.x_fp = stream;
    inputs = CollectInputs(other, {}, progress);
  }
  for (const auto& [source, scale] : scales) inputs.at(source).samples.div_(scale);
}

// One worker's matrices [in, in].
int64_t GramBytes(const Architecture& architecture, const ModelConfig& config) {
  int64_t values = 0;
  for (const int source : GramSources(architecture, config, {})) {
    const int64_t in = ShapeOf(config, architecture.linears[source].role).in;
    values += in * in;
  }
  return values * static_cast<int64_t>(sizeof(float));
}

// One worker's weights of a group: what products take, and what it is rounded from.
int64_t TrialBytes(const Architecture& architecture, const ModelConfig& config) {
  int64_t most = 0;
  for (const SmoothingGroup& group : UsableSmoothingGroups(architecture, config)) {
    int64_t weights = 0;
    for (const int linear : group.linears) {
      const LinearShape shape = ShapeOf(config, architecture.linears[linear].role);
      weights += shape.out * shape.in;
    }
    most = std::max(most, weights);
  }
  return 2 * most * static_cast<int64_t>(sizeof(float));
}

}  // namespace

int64_t AwqSearchSteps(const AwqOptions& options, const Architecture& architecture,
                       const ModelConfig& config, const StreamShape& stream) {
  int64_t steps = 0;
  if (options.search_scales) {
    steps += Batches(stream) + ScaleSearchSteps(architecture, config, Compared(options, stream),
                                                options.scale_grid_points);
  }
  if (options.search_clip) {
    steps += Batches(stream) + static_cast<int64_t>(architecture.linears.size());
  }
  return steps;
}

int64_t AwqSearchBytes(const AwqOptions& options, const Architecture& architecture,
                       const ModelConfig& config, const StreamShape& stream,
                       const at::Device& device) {
  const int64_t workers = BatchWorkers(config, stream, device);
  int64_t grams = 0, trials = 0, clip = 0;
  if (options.search_scales) {
    grams = GramBytes(architecture, config);
    // Four copies of a block leave room for the first one's.
    trials = (workers - 1) * TrialBytes(architecture, config);
  }
  for (const LinearSpec& linear : architecture.linears) {
    if (!options.search_clip || !MayClip(linear.role)) continue;
    clip = std::max(clip, ClipSearchBytes(ShapeOf(config, linear.role), SampledTokens(stream),
                                          options.group_size, device));
  }
  // Each worker sums its own; what they make together stays for the searches.
  return std::max(workers * grams, grams + std::max(trials, clip));
}

AwqBlock SearchAwq(const BlockTask& task, const AwqOptions& options, const at::Tensor& clip_inputs,
                   ProgressSink& progress) {
  AwqBlock result{task.block, {}};  // folding and clipping replace tensors, never write to them
  std::map<int, at::Tensor> scales;
  std::map<int, InputStatistics> inputs;
  if (options.search_scales) {
    const std::set<int> grams =
        GramSources(*task.block.architecture, *task.block.config, task.activations);
    inputs = CollectInputs(task, grams, progress);
    scales = SmoothBlock(task, options, inputs, result, progress);
  }
  if (options.search_clip) {
    TakeClipInputs(task, clip_inputs, scales, inputs, progress);
    ClipBlock(task, inputs, result, progress);
  }
  for (const Linear& linear : result.block.linears) CheckFinite(result.block, linear);
  return result;
}

int64_t Awq::Steps(const Architecture& architecture, const ModelConfig& config,
                   const StreamShape& stream) const {
  return AwqSearchSteps(options_, architecture, config, stream) +
         static_cast<int64_t>(architecture.linears.size());
}

int64_t Awq::WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                          const StreamShape& stream, const at::Device& device) const {
  return AwqSearchBytes(options_, architecture, config, stream, device);
}

MethodResult Awq::Quantize(const BlockTask& task, ProgressSink& progress) const {
  MethodResult result;
  result.block.index = task.block.index;
  const AwqBlock found = SearchAwq(task, options_, task.x_fp, progress);
  for (const Linear& linear : found.block.linears) {
    result.block.linears.push_back(
        QuantizeNearest(linear.name, linear.weight, linear.bias, task.grid, task.scale_dtype));
    progress.Advance(1, linear.name);
  }
  result.metrics = found.metrics;
  result.block.dense = DenseTensors(found.block, task.dense_dtypes);
  return result;
}

}  // namespace quantry::engine
