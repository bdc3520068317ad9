#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/block.h"

namespace quantry::engine {

// Quality of a quantized chain of blocks beside the dense one, over the same
// windows: each window's tokens 1..L-1 are predicted.
struct EvaluationResult {
  double perplexity_dense = 0;      // exp(mean negative log-likelihood)
  double perplexity_quantized = 0;  // 0 when only the dense chain was asked for
  double kl_divergence = 0;         // mean KL(dense || quantized), nats a token
  double top1_agreement = 0;        // share of positions with the same argmax
  int64_t windows = 0;
  int64_t tokens = 0;  // predicted
};

// Block `index` of the quantized chain in fp32, on the evaluation's device.
// Called in order, once per chunk of windows.
using BlockProvider = std::function<Block(int index)>;

// Steps finished and steps in all; the total never changes.
using EvaluationProgress = std::function<void(int64_t done, int64_t total)>;

struct EvaluationOptions {
  // Upper limit for the hidden-state streams of one chunk of windows (at least
  // one window is taken). More memory = fewer passes over the checkpoint.
  int64_t max_stream_bytes = int64_t{256} << 20;
  // The first chain's blocks; empty = those of the checkpoint.
  BlockProvider blocks = {};
  at::Device device = at::kCPU;
  // Embedding and head of the quantized chain where they are not the dense
  // one's (a rotated model); nullptr: the same. Of the same vocabulary.
  const Checkpoint* quantized_ends = nullptr;
};

// Windows: int64 [windows, length]. `quantized` empty = dense only. Streams
// through the model block by block: holds one block and one chunk's hidden
// states. Throws EngineError (NON_FINITE_WEIGHTS, INVALID_SPEC, ...) and
// whatever the callbacks throw; not cancellable otherwise.
EvaluationResult Evaluate(const Checkpoint& checkpoint, const at::Tensor& windows,
                          const BlockProvider& quantized, const EvaluationOptions& options = {},
                          const EvaluationProgress& progress = {});

// Windows of one forward pass through a block.
int64_t EvaluationBatch(int64_t length);

// A limit for max_stream_bytes of a job whose calibration has so many tokens: what that took
// anyway, within reason.
int64_t EvaluationStreamBytes(int64_t calibration_tokens, int64_t hidden_size);

// How many progress steps Evaluate will report: chunks x (blocks + 1).
int64_t EvaluationSteps(const Checkpoint& checkpoint, int64_t windows, int64_t length,
                        bool with_quantized, const EvaluationOptions& options);

}  // namespace quantry::engine
