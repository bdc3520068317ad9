#include "worker/engine/methods/pbllm/pbllm.h"

#include "worker/engine/base/json_object.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/gptq/hessian.h"
#include "worker/engine/methods/value_method.h"

namespace quantry::engine {

int64_t Pbllm::Steps(const Architecture& architecture, const ModelConfig&,
                     const StreamShape& stream) const {
  return ValueSteps(architecture, stream);
}

int64_t Pbllm::ValueBits(const LinearShape& shape) const {
  return PbllmBits(shape.out, shape.in, options_.salient_ratio);
}

int64_t Pbllm::WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                            const StreamShape& stream, const at::Device& device) const {
  return MomentBytes(architecture, config, BatchWorkers(config, stream, device), /*kept=*/2);
}

MethodResult Pbllm::Quantize(const BlockTask& task, ProgressSink& progress) const {
  return QuantizeValues(
      task,
      [&](const at::Tensor& weight, const at::Tensor& upper,
          std::map<std::string, double>* metrics) {
        const PartialBinary result = BinarizePartially(weight, upper, task.scale_dtype, options_);
        (*metrics)["loss"] = result.loss;
        return result.values;
      },
      progress);
}

std::vector<ParameterRow> PbllmParameters() {
  return {
      {"salient_ratio", "double", "0.1", "Share of the weights kept in 8 bits: above 0, below 1."},
      {"metric", "string", "\"METRIC_HESSIAN\"",
       "What makes a weight salient: METRIC_HESSIAN (w^2 / d^2) or METRIC_MAGNITUDE."},
      {"count_norm", "bool", "false",
       "Means over the binarized weights only; default: over all columns, as the authors' "
       "code has it."}};
}

std::unique_ptr<Method> CreatePbllm(JsonObject& options) {
  PbllmOptions pbllm;
  pbllm.salient_ratio = options.Positive("salient_ratio", pbllm.salient_ratio);
  if (pbllm.salient_ratio >= 1) options.Refuse("salient_ratio", "a share above 0 and below 1");
  if (options.Choice("metric", {"METRIC_UNSPECIFIED", "METRIC_HESSIAN", "METRIC_MAGNITUDE"}, 0) ==
      2) {
    pbllm.metric = PbllmOptions::Metric::kMagnitude;
  }
  pbllm.count_norm = options.Bool("count_norm", false);
  return std::make_unique<Pbllm>(pbllm);
}

}  // namespace quantry::engine
