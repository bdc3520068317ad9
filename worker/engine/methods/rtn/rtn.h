#pragma once

#include "worker/engine/methods/method.h"

namespace quantry::engine {

// Rounding to nearest on the plain min/max grid; uses no data.
class Rtn : public Method {
 public:
  int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                const StreamShape& stream) const override;
  MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const override;
};

}  // namespace quantry::engine
