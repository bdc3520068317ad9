// The header of a safetensors file; the rest of the bytes are its data.
#include "worker/engine/model/safetensors.h"
#include "worker/engine/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using quantry::engine::TensorInfo;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    const auto header = quantry::engine::ParseSafetensorsHeader(bytes, size, "fuzz");
    uint64_t end = header.data_begin;
    for (const TensorInfo& tensor : header.tensors) {
      if (tensor.begin != end || tensor.end < tensor.begin) __builtin_trap();
      end = tensor.end;
    }
    if (end != size) __builtin_trap();
  } catch (const quantry::engine::EngineError&) {
  }
  return 0;
}
