#pragma once

#include <optional>

#include "worker/engine/base/error.h"
#include "worker/engine/reconstruct/progressive_rounding.h"

namespace quantry::engine::test {

// Remembers stages; stops the run by throwing after stage `stop_after`.
class StoppingStore : public StageStore {
 public:
  std::optional<StageState> Load(int) override { return state; }
  void Save(int, const StageState& now) override {
    state = now;
    if (now.stages_done == stop_after) throw EngineError(FailureClass::kBug, "STOP", "stop");
  }
  std::optional<StageState> state;
  int stop_after = -1;
};

}  // namespace quantry::engine::test
