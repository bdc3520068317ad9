#pragma once

#include <cstdint>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/nn/products.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {

struct SignroundOptions {
  int iterations = 200;
  double learning_rate = 0;        // first step of a rounding offset; 0 = 1 / iterations
  double range_learning_rate = 0;  // of a range factor; 0 = learning_rate
  int batch_size = 0;              // windows a step; 0 = 8, or all where there are fewer
  bool tune_ranges = true;
  double token_energy_limit = 0;                   // see RootTokenWeights
  bool quantized_input = true;                     // train on the quantized prefix's activations
  ComputeChoice compute = ComputeDtype::kFloat32;  // of training's products
};

// The grid of each linear of a block.
struct SignroundGrids {
  std::vector<GroupGrid> grids;
  double first_loss = 0;  // mean squared error of a batch, everything rounded to nearest
  double best_loss = 0;   // the least of any step
  int retries = 0;        // losses that were not finite
};

// Tunes the ranges as the method below does, for another method to round on; the
// rounding offsets tuned along are dropped. `targets`: what the block should give, fp32
// [windows, length, hidden]. Advances by `iterations`. Throws NON_FINITE_LOSS.
SignroundGrids TuneRanges(const BlockTask& task, const at::Tensor& targets,
                          const SignroundOptions& options, ProgressSink& progress);
// The memory it takes beside the targets, for Method::WorkingBytes.
int64_t TuneRangesBytes(const SignroundOptions& options, const Architecture& architecture,
                        const ModelConfig& config, const StreamShape& stream,
                        const at::Device& device);

// SignRound (Cheng et al., arXiv 2309.05516), the method of AutoRound: every
// weight gets an offset in [-0.5, 0.5] before it is rounded, every group factors
// in [0, 1] for both ends of its range; all move by the sign of the gradient of
// the block's output error, by steps that fall linearly to 0, over windows drawn
// anew each step. The parameters with the least loss of any step win. Targets
// are outputs of the original chain.
class Signround : public Method {
 public:
  explicit Signround(const SignroundOptions& options) : options_(options) {}
  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  int64_t WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                       const StreamShape& stream, const at::Device& device) const override;
  void Check(const StreamShape& stream) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;

 private:
  SignroundOptions options_;
};

}  // namespace quantry::engine
