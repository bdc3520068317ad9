#pragma once

#include "worker/engine/methods/method.h"

namespace quantry::engine {

struct QuarotOptions {
  bool search_clip = false;  // grids by SearchGrid, not min/max
  bool gptq = false;         // round with GPTQ, not to nearest
};

// Rounds the blocks of a rotated model (QuaRot, Ashkboos et al., arXiv
// 2404.00456; spec: baselines.md 3.3). The rotation itself happens before: the
// pipeline quantizes the checkpoint WriteRotatedCheckpoint made.
class Quarot : public Method {
 public:
  explicit Quarot(const QuarotOptions& options) : options_(options) {}
  bool NeedsCalibration() const override { return options_.gptq; }
  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  int64_t WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                       const StreamShape& stream, const at::Device& device) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;

 private:
  QuarotOptions options_;
};

}  // namespace quantry::engine
