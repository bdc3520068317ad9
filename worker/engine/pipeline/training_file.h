#pragma once

#include <optional>
#include <string>

#include "worker/engine/reconstruct/training_state.h"

namespace quantry::engine {

// TrainingState on disk: safetensors with "tensor.N" and "moment.N", fp32;
// metadata "quantry" holds steps, losses and a digest of the numbers. Written
// atomically.
void WriteTrainingFile(const std::string& path, const std::string& fingerprint,
                       const TrainingState& state);

// Empty when there is none, or it belongs to another fingerprint or is damaged.
std::optional<TrainingState> ReadTrainingFile(const std::string& path,
                                              const std::string& fingerprint);

}  // namespace quantry::engine
