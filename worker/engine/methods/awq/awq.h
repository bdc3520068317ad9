#pragma once

#include "worker/engine/methods/method.h"

namespace quantry::engine {

struct AwqOptions {
  bool search_scales = true;
  bool search_clip = true;
  int scale_grid_points = 20;  // candidates ratio = n / points, n = 0 .. points - 1
  // The scale search compares outputs of whole windows, spread evenly, of about as many tokens
  // at most; the authors' code takes 128 x 512.
  int64_t search_tokens = int64_t{128} * 512;
  int64_t group_size = 128;  // of the grid: the clip search's memory goes with it
};

// What the searches make of a block, not yet rounded.
struct AwqBlock {
  Block block;  // norms and weights folded, weights clamped; fp32 on the task's device
  std::map<std::string, double> metrics;
};

// Scale search over windows of task.x_fp, then clip search. The clip search's inputs
// come from `clip_inputs` [windows, length, hidden], task.x_fp or task.x_q.
// Advances `progress` by AwqSearchSteps. Throws NON_FINITE_LOSS.
AwqBlock SearchAwq(const BlockTask& task, const AwqOptions& options, const at::Tensor& clip_inputs,
                   ProgressSink& progress);
int64_t AwqSearchSteps(const AwqOptions& options, const Architecture& architecture,
                       const ModelConfig& config, const StreamShape& stream);
// Memory its searches take at most, for Method::WorkingBytes: Gram matrices,
// trial weights of batches that are scored side by side, pieces of the clip search.
int64_t AwqSearchBytes(const AwqOptions& options, const Architecture& architecture,
                       const ModelConfig& config, const StreamShape& stream,
                       const at::Device& device);

// Activation-aware weight quantization (Lin et al., arXiv 2306.00978; spec:
// tesseraq.md 1.3 and 1.4): per-channel scale search, clip search, rounding to
// nearest. Inputs come from the full-precision chain.
class Awq : public Method {
 public:
  explicit Awq(const AwqOptions& options) : options_(options) {}
  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  int64_t WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                       const StreamShape& stream, const at::Device& device) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;

 private:
  AwqOptions options_;
};

}  // namespace quantry::engine
