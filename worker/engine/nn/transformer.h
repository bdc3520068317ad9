#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/block.h"

namespace quantry::engine {

// Block `index` in fp32. Only its own tensors are read; weights of packed
// modules (Checkpoint::OpenPacked) stay undefined. Throws
// NON_FINITE_WEIGHTS, INVALID_CHECKPOINT.
Block LoadBlock(const Checkpoint& checkpoint, int index, const at::Device& device = at::kCPU);

// fp32 hidden states [batch, tokens, hidden] of token ids int64 [batch,
// tokens], learned positions from `first_position` on added. Only the rows asked for
// are read.
at::Tensor Embed(const Checkpoint& checkpoint, const at::Tensor& ids,
                 const at::Device& device = at::kCPU, int64_t first_position = 0);

// y = norm(x) over the last dimension, computed in fp32.
at::Tensor ApplyNorm(const Norm& norm, NormKind kind, double eps, const at::Tensor& x);

// What comes after the last block: final norm, then the vocabulary's product.
class OutputHead {
 public:
  explicit OutputHead(const Checkpoint& checkpoint, const at::Device& device = at::kCPU);

  // hidden [..., hidden] -> the same shape.
  at::Tensor Normalize(const at::Tensor& hidden) const;

  // Logits of vocabulary rows [first, first + count) for normed
  // [rows, hidden]: [rows, count]. Reads only those rows.
  at::Tensor Logits(const at::Tensor& normed, int64_t first, int64_t count) const;
  // Those rows of the head in fp32 [count, hidden].
  at::Tensor Rows(int64_t first, int64_t count) const;

  int64_t vocab_size() const;

 private:
  const Checkpoint* checkpoint_;
  at::Device device_;
  Norm norm_;
};

}  // namespace quantry::engine
