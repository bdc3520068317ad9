#include "worker/engine/methods/value_method.h"

#include <set>

#include "worker/engine/base/non_finite.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/gptq/hessian.h"
#include "worker/engine/model/shared_inputs.h"

namespace quantry::engine {
namespace {

constexpr double kDamping = 0.01;  // all of the references

// Second moments of one input, ready for use.
struct Moments {
  at::Tensor dead;   // bool [in]: columns that are never active
  at::Tensor upper;  // see ToValues
};

Moments Prepare(const at::Tensor& hessian) {
  Moments moments;
  moments.dead = hessian.diagonal() == 0;
  at::Tensor alive = hessian.clone();
  alive.diagonal().masked_fill_(moments.dead, 1.0);
  moments.upper = FactorInverse(alive, kDamping).upper;
  return moments;
}

void CheckValues(int block, const QuantizedLinear& linear) {
  if (AllFinite(linear.values)) return;
  throw NonFiniteLoss(block, "values of " + linear.name,
                      "they are not finite: its inputs are too large for the saliency of its "
                      "weights; check the model and the calibration text");
}

}  // namespace

int64_t ValueSteps(const Architecture& architecture, const StreamShape& stream) {
  return Batches(stream) + static_cast<int64_t>(architecture.linears.size());
}

MethodResult QuantizeValues(const BlockTask& task, const ToValues& quantize,
                            ProgressSink& progress) {
  const Architecture& architecture = *task.block.architecture;
  std::set<int> sources;
  for (size_t i = 0; i < architecture.linears.size(); ++i) {
    sources.insert(InputSource(architecture, static_cast<int>(i)));
  }
  std::map<int, Moments> moments;
  for (const auto& [source, hessian] : CollectHessians(task, task.block, sources, progress)) {
    moments[source] = Prepare(hessian);
  }
  MethodResult result;
  result.block.index = task.block.index;
  result.block.dense = DenseTensors(task.block, task.dense_dtypes);
  for (size_t i = 0; i < task.block.linears.size(); ++i) {
    const Linear& linear = task.block.linears[i];
    const Moments& own = moments.at(InputSource(architecture, static_cast<int>(i)));
    std::map<std::string, double> metrics;
    const at::Tensor weight = linear.weight.masked_fill(own.dead.unsqueeze(0), 0.0);
    QuantizedLinear& quantized = result.block.linears.emplace_back();
    quantized.name = linear.name;
    quantized.values = quantize(weight, own.upper, &metrics).to(at::kBFloat16).cpu();
    CheckValues(task.block.index, quantized);
    if (linear.bias.defined()) quantized.bias = linear.bias.cpu();
    if (!own.upper.defined()) metrics["not_compensated"] = 1;
    for (const auto& [name, value] : metrics) result.metrics[name + "." + linear.name] = value;
    progress.Advance(1, linear.name);
  }
  return result;
}

}  // namespace quantry::engine
