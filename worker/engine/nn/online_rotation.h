#pragma once

#include <ATen/ATen.h>

#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "worker/engine/model/architecture.h"
#include "worker/engine/model/config.h"
#include "worker/engine/nn/hadamard.h"

namespace quantry::engine {

// Rotations a rotated model applies to the inputs of two linears while it runs
// (spec: baselines.md 3.2): the attention output's, across heads, and the down
// projection's. Their inverses are folded into those linears, so the model
// computes the same with them, and nonsense without.
struct OnlineRotation {
  // Of size num_heads: mixes heads, leaves channels inside a head. Of size
  // query_size: the whole vector, where num_heads has no Hadamard matrix.
  // Nothing: the input stays (neither size has one).
  std::optional<Hadamard> attention;
  Hadamard down;  // of size intermediate_size

  // x [..., in] of linear `role` -> the same shape.
  at::Tensor Apply(LinearRole role, const at::Tensor& x) const;
  // The same on the rows of that linear's weight, which makes up for it.
  at::Tensor ApplyToRows(LinearRole role, const at::Tensor& weight) const {
    return Apply(role, weight);
  }

  // Throws UNSUPPORTED_ARCHITECTURE naming the size without a Hadamard matrix,
  // or one that config.json's "quantry_rotation" has another matrix for.
  static OnlineRotation For(const ModelConfig& config);

  // Whether a model's config.json asks for them: "quantry_rotation":
  // {"online": true}, which WriteRotatedCheckpoint puts there.
  static bool IsWanted(const ModelConfig& config);
};

// {"size", "order", "construction"} of a matrix, as "quantry_rotation" lists
// those of a rotated model: only the same ones run it (spec: baselines.md 3.5).
nlohmann::json ToJson(const Hadamard& hadamard);

// Throws UNSUPPORTED_ARCHITECTURE "`what` n has no Hadamard matrix here".
Hadamard HadamardFor(const char* what, int64_t n);

}  // namespace quantry::engine
