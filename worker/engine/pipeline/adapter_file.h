#pragma once

#include <optional>
#include <string>

#include "worker/engine/reconstruct/lora.h"

namespace quantry::engine {

// LoraState on disk: safetensors with "adapter.N" and "moment.N", fp32;
// metadata "quantry" holds steps, losses and a digest of the numbers. Written
// atomically.
void WriteAdapterFile(const std::string& path, const std::string& fingerprint,
                      const LoraState& state);

// Empty when there is none, or it belongs to another fingerprint or is damaged.
std::optional<LoraState> ReadAdapterFile(const std::string& path, const std::string& fingerprint);

}  // namespace quantry::engine
