#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/block.h"
#include "worker/engine/nn/rope.h"
#include "worker/engine/reconstruct/training_state.h"

namespace quantry::engine {

// Low-rank adapters (Hu et al., arXiv 2106.09685) on a quantized model, trained
// by next-token loss and merged into it: W + alpha / r B A, with A [r, in] and
// B [out, r]. Defaults are those of PTQ1.61's code (spec: ptq161.md 5.1).
struct LoraOptions {
  int64_t rank = 0;  // 0 = 64, also where a side of a linear is less
  double alpha = 16;
  double dropout = 0.1;  // of the adapters' inputs
  int64_t steps = 10'000;
  int64_t accumulation = 2;  // windows a step, about 1024 tokens of them at a time
  double learning_rate = 1e-4;
  int64_t warmup_steps = -1;  // -1 = a tenth of the steps
  double clip_norm = 1;
  bool attention_output = false;  // adapters there too
  uint64_t seed = 0;
};

struct LoraReport {
  double loss_first = 0;  // nats a token, mean of the first and last tenth of the steps
  double loss_last = 0;
  int retries = 0;             // times training began again, at lower rates
  double relative_change = 0;  // mean over adapted linears of |change| / |weight|, Frobenius
};

// Trains adapters on `blocks`, all of the model's, fp32 on `device`, and merges
// them. windows: int64 [windows, length] of the corpus, taken in a shuffled
// order, again and again. Advances `progress` by options.steps; those not taken
// from the store are a phase. Holds the model in fp32. Deterministic as methods are. Throws
// EngineError "NON_FINITE_LOSS" after the retries of retries.h.
LoraReport TrainLora(const Checkpoint& checkpoint, const RopeTable& rope, const at::Tensor& windows,
                     const at::Device& device, const LoraOptions& options, TrainingStore* store,
                     std::vector<Block>& blocks, ProgressSink& progress);

// What it holds at most, on the host with this process's threads: the blocks
// and the head in fp32, adapters with moments and gradients, and of the windows
// taken at a time every block's input, one block's activations and logits.
int64_t LoraBytes(const LoraOptions& options, const Architecture& architecture,
                  const ModelConfig& config, int64_t length, const at::Device& device);

// Throws UserError INVALID_SPEC when options.rank exceeds a side of a linear
// that would be adapted.
void CheckLora(const LoraOptions& options, const Architecture& architecture,
               const ModelConfig& config);

}  // namespace quantry::engine
