#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {

struct OmniquantOptions {
  std::optional<bool> learn_transform;  // default: quantized activations, or LayerNorm (OPT)
  int epochs = 0;                       // 0 = 20, 40 at 2 bits
  double learning_rate = 1e-2;          // of the clipping logits
  double transform_learning_rate = 5e-3;
  double transform_alpha = 0.5;
  std::optional<bool> augmented_loss;  // default: at 2 bits
  int batch_size = 1;                  // windows a step
  double token_energy_limit = 0;       // see RootTokenWeights
  bool tie_rope_pairs = true;
};

// What share of each group's range is kept, 0 .. 1: sigmoid of the trained
// logits. Ranges are those of the transformed weights.
struct ClipFactors {
  at::Tensor upper;  // fp32 [out, groups], of the largest value
  at::Tensor lower;  // of the smallest
};

struct OmniquantResult {
  Block block;                     // transformed; `task.block`'s tensors where nothing was
  std::vector<ClipFactors> clips;  // one a linear, in the block's order
  double first_loss = 0;           // mean squared error over the first epoch
  double last_loss = 0;            // over the last
  int retries = 0;                 // starts over at a tenth of the rates
};

// Learns where to clip every group of weights and, if asked for, an equivalent
// transformation of the block: Adam on the squared error between the quantized
// block's output on the quantized prefix and the original block's on the
// original one (Shao et al., arXiv 2308.13137; spec: baselines.md 2). Windows in
// order, `epochs` times. Where a loss is not finite it starts over at a tenth of
// the rates, twice at most; then throws NON_FINITE_LOSS.
OmniquantResult LearnClipping(const BlockTask& task, const OmniquantOptions& options,
                              ProgressSink& progress);

// Steps LearnClipping advances by.
int64_t LearnClippingSteps(const OmniquantOptions& options, int bits, const StreamShape& stream);

// What LearnClipping holds at once on `device`, targets among it.
int64_t LearnClippingBytes(const OmniquantOptions& options, const ModelConfig& config,
                           const StreamShape& stream, const at::Device& device);

// The grid of a weight whose ranges are clipped so. Scales are rounded.
GroupGrid ClippedGrid(const at::Tensor& weight, const ClipFactors& clip, const GridSpec& spec,
                      at::ScalarType scale_dtype);

// OmniQuant as a method: LearnClipping, then rounding to nearest.
class Omniquant : public Method {
 public:
  // `bits` of the job's grid: they decide how many epochs there are.
  Omniquant(const OmniquantOptions& options, int bits) : options_(options), bits_(bits) {}
  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  int64_t WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                       const StreamShape& stream, const at::Device& device) const override;
  void Check(const StreamShape& stream) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;

 private:
  OmniquantOptions options_;
  int bits_;
};

}  // namespace quantry::engine
