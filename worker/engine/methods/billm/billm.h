#pragma once

#include <memory>
#include <vector>

#include "worker/engine/methods/billm/split.h"
#include "worker/engine/methods/catalog.h"
#include "worker/engine/methods/method.h"

namespace quantry::engine {

// BiLLM (Huang et al., arXiv 2402.04291; spec: baselines.md 4): whole salient
// columns binarized twice, the others in two groups a row, block by block of
// columns with compensation. About 3 bits a weight when everything is counted.
class Billm : public Method {
 public:
  explicit Billm(const BillmOptions& options) : options_(options) {}
  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  int64_t ValueBits(const LinearShape& shape) const override;
  int64_t WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                       const StreamShape& stream, const at::Device& device) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;

 private:
  BillmOptions options_;
};

// BillmMethod of method.proto.
std::vector<ParameterRow> BillmParameters();
std::unique_ptr<Method> CreateBillm(JsonObject& options);

}  // namespace quantry::engine
