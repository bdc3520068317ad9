#pragma once

#include "worker/engine/methods/method.h"
#include "worker/engine/methods/ptq161/options.h"

namespace quantry::engine {

// PTQ1.61 (Zhao et al., arXiv 2502.13179; spec: ptq161.md): a structured mask
// keeps the columns with the loudest inputs on a 4-bit grid, all others become
// a sign a weight with trained row and column gains.
class Ptq161 : public Method {
 public:
  explicit Ptq161(const Ptq161Options& options) : options_(options) {}

  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  int64_t WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                       const StreamShape& stream, const at::Device& device) const override;
  bool NeedsPreprocessing() const override { return options_.first_pass_mask; }
  ComputeChoice Compute() const override { return options_.compute; }
  void Check(const StreamShape& stream) const override;
  int64_t SalientColumns(int64_t in_features) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;

 private:
  Ptq161Options options_;
};

}  // namespace quantry::engine
