// config.json of a checkpoint.
#include "worker/engine/base/error.h"
#include "worker/engine/model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const quantry::engine::Architecture* architecture = nullptr;
  try {
    const auto config = quantry::engine::ParseModelConfig(
        {reinterpret_cast<const char*>(data), size}, &architecture);
    if (architecture == nullptr || config.num_layers < 1 || config.query_size() < 1) {
      __builtin_trap();
    }
  } catch (const quantry::engine::EngineError&) {
  }
  return 0;
}
