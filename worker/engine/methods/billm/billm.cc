#include "worker/engine/methods/billm/billm.h"

#include "worker/engine/base/json_object.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/billm/columns.h"
#include "worker/engine/methods/gptq/hessian.h"
#include "worker/engine/methods/value_method.h"

namespace quantry::engine {

int64_t Billm::Steps(const Architecture& architecture, const ModelConfig&,
                     const StreamShape& stream) const {
  return ValueSteps(architecture, stream);
}

int64_t Billm::ValueBits(const LinearShape& shape) const {
  return BillmBits(shape.out, shape.in, options_.block_size);
}

int64_t Billm::WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                            const StreamShape& stream, const at::Device& device) const {
  return MomentBytes(architecture, config, BatchWorkers(config, stream, device), /*kept=*/2);
}

MethodResult Billm::Quantize(const BlockTask& task, ProgressSink& progress) const {
  return QuantizeValues(
      task,
      [&](const at::Tensor& weight, const at::Tensor& upper,
          std::map<std::string, double>* metrics) {
        const BinarizedColumns result = BinarizeColumns(weight, upper, options_);
        (*metrics)["loss"] = result.loss;
        (*metrics)["salient_columns"] = static_cast<double>(result.salient);
        return result.values;
      },
      progress);
}

std::vector<ParameterRow> BillmParameters() {
  return {{"metric", "string", "\"METRIC_HESSIAN\"",
           "What makes a weight salient: METRIC_HESSIAN (w^2 / d^2) or METRIC_MAGNITUDE."},
          {"domain", "string", "\"DOMAIN_SALIENCY\"",
           "Where the searches measure errors: DOMAIN_SALIENCY (the authors' code) or "
           "DOMAIN_WEIGHTS (their paper)."},
          {"exact_compensation", "bool", "false",
           "Spread a block's error by the inverse of its triangle, not of its diagonal."}};
}

std::unique_ptr<Method> CreateBillm(JsonObject& options) {
  BillmOptions billm;
  if (options.Choice("metric", {"METRIC_UNSPECIFIED", "METRIC_HESSIAN", "METRIC_MAGNITUDE"}, 0) ==
      2) {
    billm.metric = BillmOptions::Metric::kMagnitude;
    options.RefuseIdle({"domain"},
                       "with METRIC_MAGNITUDE, whose saliency is the weights themselves (leave one "
                       "of the two out)");
  }
  if (options.Choice("domain", {"DOMAIN_UNSPECIFIED", "DOMAIN_SALIENCY", "DOMAIN_WEIGHTS"}, 0) ==
      2) {
    billm.domain = BillmOptions::Domain::kWeights;
  }
  billm.exact_compensation = options.Bool("exact_compensation", false);
  return std::make_unique<Billm>(billm);
}

}  // namespace quantry::engine
