#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "worker/engine/nn/block.h"
#include "worker/engine/nn/rope.h"

namespace quantry::engine {

// Tensors of a block that a reconstruction may change: every linear's weight,
// and with `norms` also norm weights and biases (of norms and linears).
struct TrainableTensors {
  std::vector<at::Tensor> weights;  // [out, in] of every linear, in block order
  std::vector<at::Tensor> dense;    // norm weights and biases, see DenseParameters
};

// What reconstruction minimises: the distance between the outputs a block
// should have and those it has (spec: tesseraq.md 2.4),
//   mean over windows and tokens of sum over hidden of (target - output)^2.
// Large models split an operation over the cores; small ones the windows of a
// batch, one share a core. Results depend on the thread count only.
//
// With `mixing` above 0 a step sees, token by token, the input of the original
// chain instead of the quantized one with that probability (after QDrop, Wei
// et al., arXiv 2203.05740): more variety from the same windows.
class BlockObjective {
 public:
  // block: what is fixed (architecture, biases, norms); its weights are not
  // used. Gradients multiplies in the block's compute dtype, Loss in fp32.
  // inputs, targets: fp32 [windows, length, hidden] in host memory.
  BlockObjective(const Block& block, const RopeTable& rope, at::Tensor inputs, at::Tensor targets,
                 const at::Device& device);

  struct Result {
    double loss = 0;
    std::vector<at::Tensor> weight_gradients;  // [out, in], as TrainableTensors::weights
    std::vector<at::Tensor> dense_gradients;   // as TrainableTensors::dense
  };

  // x_fp: inputs through the original blocks, as `inputs`.
  void MixInputs(at::Tensor x_fp, double probability);

  // Tokens of more than `limit` times the median energy count as if they had that
  // (RootTokenWeights).
  void LimitTokens(double limit);

  // Loss and gradients on the given windows. `seed` decides about mixing.
  Result Gradients(const std::vector<int64_t>& windows, const TrainableTensors& at,
                   uint64_t seed = 0) const;
  struct Losses {
    double all = 0;      // of all tokens alike
    double limited = 0;  // as Gradients counts them: the same without LimitTokens
  };
  Losses LossesOf(const TrainableTensors& at, int64_t first, int64_t last) const;
  // The limited loss on all windows, on the first `windows` of them, or on [first, last).
  double Loss(const TrainableTensors& at) const { return Loss(at, windows()); }
  double Loss(const TrainableTensors& at, int64_t windows) const { return Loss(at, 0, windows); }
  double Loss(const TrainableTensors& at, int64_t first, int64_t last) const {
    return LossesOf(at, first, last).limited;
  }

  int64_t windows() const { return inputs_.size(0); }

 private:
  at::Tensor Inputs(const std::vector<int64_t>& windows, uint64_t seed) const;
  Result Part(const std::vector<int64_t>& windows, double tokens, const TrainableTensors& at,
              uint64_t seed) const;

  Block block_;
  const RopeTable& rope_;
  at::Tensor inputs_;
  at::Tensor targets_;
  at::Device device_;
  at::Tensor clean_;  // x_fp, when mixed in
  double mixing_ = 0;
  at::Tensor roots_;  // of the tokens' weights, where they differ
};

// Norm weights and biases, linears' biases of a block that exist, in a fixed
// order: what TrainableTensors::dense stands for.
std::vector<at::Tensor*> DenseParameters(Block& block);

}  // namespace quantry::engine
