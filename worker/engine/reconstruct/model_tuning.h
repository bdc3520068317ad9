#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/products.h"
#include "worker/engine/nn/rope.h"
#include "worker/engine/quant/quantized_linear.h"
#include "worker/engine/reconstruct/training_state.h"

namespace quantry::engine {

// Tunes what is continuous in a quantized model, scales and norms (and biases),
// against the original model's predictions: the mean over tokens of
// KL(original || quantized), by Adam. Integers and zero points stay. Block by
// block reconstruction cannot see how errors of several blocks add up; this
// can (after EfficientQAT's second phase, Chen et al., arXiv 2407.11062, with
// the model itself as the teacher).
struct ModelTuningOptions {
  int64_t steps = 0;  // 0 = none
  int64_t batch_size = 4;
  // Rate of the logarithm of each scale, and of dense tensors relative to
  // their size; both fall linearly to 0.
  double scale_rate = 3e-3;
  double dense_rate = 0;  // 0 = they stay
  uint64_t seed = 0;
  ComputeChoice compute = ComputeDtype::kFloat32;  // of the blocks' products
};

// What tuning works on. Memory: one block's activations and weights beside a
// byte a weight for all blocks; a block is dequantized when it is used, and
// run again in the backward pass.
struct ModelTuningTask {
  const Checkpoint& checkpoint;
  const RopeTable& rope;
  const at::Tensor& windows;  // int64 [windows, length]
  // Outputs of the last original block on them, fp32 [windows, length, hidden].
  const at::Tensor& outputs;
  at::Device device = at::kCPU;
  ActivationSpec activations;  // of the quantized model
  std::function<std::map<std::string, at::ScalarType>(int block)> dense_dtypes;
};

struct ModelTuningReport {
  double first_loss = 0;  // mean KL of the first and of the last tenth of the steps
  double last_loss = 0;
  int retries = 0;  // times tuning began again, at lower rates
};

// Changes scales and dense tensors of `blocks`, every block of the model in
// order. Advances `progress` by options.steps; those not taken from the store
// are a phase. Deterministic as methods are. Throws EngineError
// "NON_FINITE_LOSS" after the retries of retries.h.
ModelTuningReport TuneModel(const ModelTuningTask& task, const ModelTuningOptions& options,
                            TrainingStore* store, std::vector<QuantizedBlock>& blocks,
                            ProgressSink& progress);

// What it holds at most beside four fp32 copies of one block, on the host with
// this process's threads: a byte a weight and a few floats a scale of all blocks,
// the head, of a batch the hidden states, a block's activations and a chunk of
// logits, and a block with its gradient of each share but the first.
int64_t TuningBytes(const ModelTuningOptions& options, const Checkpoint& checkpoint,
                    int64_t group_size, int64_t length, const at::Device& device);

}  // namespace quantry::engine
