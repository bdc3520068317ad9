#pragma once

#include "worker/engine/methods/gptq/columns.h"
#include "worker/engine/methods/method.h"

namespace quantry::engine {

struct GptqOptions {
  ColumnOptions columns;
  bool true_sequential = false;  // later linears see the block's earlier ones quantized
  bool search_clip = false;      // grids by SearchGrid, not min/max
};

// GPTQ (Frantar et al., arXiv 2210.17323; spec: baselines.md 1). Second moments
// come from the quantized prefix; inside the block its linears are the original
// ones unless `true_sequential`.
class Gptq : public Method {
 public:
  explicit Gptq(const GptqOptions& options) : options_(options) {}
  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  int64_t WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                       const StreamShape& stream, const at::Device& device) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;

 private:
  GptqOptions options_;
};

}  // namespace quantry::engine
