#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "worker/engine/model/checkpoint.h"
#include "worker/engine/model/sharded_writer.h"
#include "worker/engine/nn/block.h"
#include "worker/engine/nn/hadamard.h"
#include "worker/engine/nn/online_rotation.h"

namespace quantry::engine {

// Whether and how a job rotates the model before it quantizes it (Rotation in
// method.proto).
struct RotationSpec {
  bool enabled = false;
  bool online = false;  // rotate inputs of attention output and down projection, too
};

// The rotation of one model (QuaRot, spec: baselines.md 3.1): the residual
// stream becomes h Q with Q = D M^T, D random signs, M the Hadamard transform of
// hidden_size. Exact for models with RMSNorm: norm weights are folded into the
// linears after them, nothing is subtracted. All in fp64. Immutable.
class Rotation {
 public:
  // Throws UNSUPPORTED_ARCHITECTURE: LayerNorm, a size without a Hadamard matrix.
  Rotation(const Architecture& architecture, const ModelConfig& config, bool online, uint64_t seed);

  // h Q of rows [..., hidden], fp64.
  at::Tensor Residual(const at::Tensor& rows) const;

  // The block that does to rotated hidden states what `block` does to plain
  // ones: Rotate(block).Forward(h Q) = block.Forward(h) Q. Norm weights are 1.
  Block Rotate(const Block& block) const;

  bool online() const { return online_.has_value(); }

  // Its Hadamard matrices, one for each size (ToJson).
  nlohmann::json Matrices() const;

 private:
  void RotateHeads(const ModelConfig& config, Block& block) const;
  void FoldOnline(Block& block) const;

  Hadamard residual_;
  std::optional<Hadamard> head_;  // head_dim, folded into value rows and output columns
  std::optional<OnlineRotation> online_;
  at::Tensor signs_;  // fp64 [hidden], the diagonal of D
};

// Writes the rotated model of `source` below `dir`: config.json and weights, in
// shards where they are large; embedding and head untied, linears in fp32,
// everything else in the source's dtypes. config.json gets "quantry_rotation":
// "online", which makes the engine run it with its online rotations, "seed" and
// "hadamard", its matrices. config.json comes last, so a folder that has one is
// whole.
void WriteRotatedCheckpoint(const Checkpoint& source, const RotationSpec& spec, uint64_t seed,
                            const std::string& dir, uint64_t max_shard_bytes = kMaxShardBytes,
                            const OnBytes& on_bytes = {});

// Memory that takes beside its blocks, bytes: the embedding (or the head, where
// larger) as stored and rotated, and the rows in work in fp64.
int64_t RotatingBytes(const Checkpoint& source);

}  // namespace quantry::engine
