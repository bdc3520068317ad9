#pragma once

#include <memory>
#include <vector>

#include "worker/engine/methods/catalog.h"
#include "worker/engine/methods/method.h"
#include "worker/engine/methods/pbllm/partial.h"

namespace quantry::engine {

// PB-LLM after training (Shang et al., arXiv 2310.00034; spec: baselines.md 5):
// single salient weights in 8 bits, the others one sign each, with GPTQ's
// compensation. 2.7 bits a weight at 10 % salient ones.
class Pbllm : public Method {
 public:
  explicit Pbllm(const PbllmOptions& options) : options_(options) {}
  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  int64_t ValueBits(const LinearShape& shape) const override;
  int64_t WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                       const StreamShape& stream, const at::Device& device) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;

 private:
  PbllmOptions options_;
};

// PbllmMethod of method.proto.
std::vector<ParameterRow> PbllmParameters();
std::unique_ptr<Method> CreatePbllm(JsonObject& options);

}  // namespace quantry::engine
