#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <string>

#include "worker/engine/methods/method.h"

namespace quantry::engine {

// One weight of a method without a packed form (WeightKind::kValues): the
// values it becomes, fp32 [out, in].
//   weight: fp32 [out, in], columns that are never active set to 0
//   upper: fp32 [in, in], FactorInverse of the inputs' second moments; undefined
//   when they could not be factorized
//   metrics: for the block's report
using ToValues = std::function<at::Tensor(const at::Tensor& weight, const at::Tensor& upper,
                                          std::map<std::string, double>* metrics)>;

// Runs `quantize` over every linear of a block, all on second moments of the
// quantized prefix through the block's original linears (spec: baselines.md
// 0.1, "all at once"). Values are rounded to bf16, in which they are stored.
// Throws EngineError "NON_FINITE_LOSS" naming the linear whose are not finite.
MethodResult QuantizeValues(const BlockTask& task, const ToValues& quantize,
                            ProgressSink& progress);

// What QuantizeValues reports: batches of second moments, then linears.
int64_t ValueSteps(const Architecture& architecture, const StreamShape& stream);

}  // namespace quantry::engine
