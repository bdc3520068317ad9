// A quantry container: config.json is right, the weights file is the input.
#include "tests/fuzz/scratch.h"
#include "worker/engine/base/error.h"
#include "worker/engine/export/container_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const quantry::fuzz::Scratch folder;
  folder.Write("config.json", R"({"quantization_config": {"quant_method": "quantry"}})");
  folder.Write("model.quantry.safetensors", {reinterpret_cast<const char*>(data), size});
  try {
    const quantry::engine::ContainerReader reader(folder.path());
    for (const std::string& module : reader.modules()) {
      try {
        (void)reader.Read(module);
      } catch (const quantry::engine::EngineError&) {
      }
    }
  } catch (const quantry::engine::EngineError&) {
  }
  return 0;
}
