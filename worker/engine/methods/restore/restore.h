#pragma once

#include <memory>
#include <vector>

#include "worker/engine/methods/catalog.h"

namespace quantry::engine {

// Preprocessing as a method of its own (spec: ptq161.md 5): the restored model's
// weights as they are, in bf16. `first_pass` quantizes the model that the
// adapters are trained on.
class Restore : public Method {
 public:
  explicit Restore(std::unique_ptr<Method> first_pass) : first_pass_(std::move(first_pass)) {}
  const Method& FirstPass() const override { return *first_pass_; }
  ComputeChoice Compute() const override { return first_pass_->Compute(); }
  bool NeedsPreprocessing() const override { return true; }
  void Check(const StreamShape& stream) const override { first_pass_->Check(stream); }
  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  int64_t WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                       const StreamShape& stream, const at::Device& device) const override;
  int64_t ValueBits(const LinearShape& shape) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;

 private:
  std::unique_ptr<Method> first_pass_;
};

// Reads `first_pass`, the message of ptq161.
std::unique_ptr<Method> CreateRestore(JsonObject& options);
std::vector<ParameterRow> RestoreParameters();

}  // namespace quantry::engine
