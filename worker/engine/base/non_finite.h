#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <string>

#include "worker/engine/base/error.h"

namespace quantry::engine {

// NaN and infinity pass through aminmax, which copies nothing.
inline bool AllFinite(const at::Tensor& values) {
  if (values.numel() == 0) return true;
  const auto [low, high] = at::aminmax(values);
  return std::isfinite(low.item<double>()) && std::isfinite(high.item<double>());
}

// NON_FINITE_LOSS in `step` of a block's work; `what`: what is not finite, and
// what to do.
inline EngineError NonFiniteLoss(int block, const std::string& step, const std::string& what) {
  const std::string index = std::to_string(block);
  return UserError("NON_FINITE_LOSS", "block " + index + ", " + step + ": " + what,
                   {{"block", index}, {"step", step}});
}

}  // namespace quantry::engine
