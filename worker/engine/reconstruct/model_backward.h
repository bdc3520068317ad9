#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "worker/engine/nn/block.h"
#include "worker/engine/nn/rope.h"
#include "worker/engine/nn/transformer.h"

namespace quantry::engine {

// A whole model's loss, block by block: what training of all blocks together
// supplies.
struct ModelPass {
  // Output of block `index` for `hidden`; under autograd when it is on. Called
  // a second time with the same input in the backward pass.
  std::function<at::Tensor(size_t index, const at::Tensor& hidden)> forward;
  // Loss of the last block's outputs, and its slope by them.
  std::function<double(const at::Tensor& outputs, at::Tensor& slope)> loss;
  // The gradients of block `index` are there, last block first.
  std::function<void(size_t index)> collect;
  // A block was run once more, PassSteps() times in all; may be empty.
  std::function<void()> advance = {};
};

// Each block runs forward, and once more with its backward pass.
inline int64_t PassSteps(int64_t blocks) { return 2 * blocks; }

// Logits held at once in one tensor, 64 MiB.
inline constexpr int64_t kMaxLogits = int64_t{1} << 24;

// Loss of `embedded` [batch, tokens, hidden] through `blocks` blocks, with all
// gradients. Keeps every block's input and one block's activations: a block
// runs again when its turn comes in the backward pass.
double BackwardThroughModel(const at::Tensor& embedded, size_t blocks, const ModelPass& pass);

// Calls `chunk(first, last, normed, slope)` for a few tokens at a time, where
// the head's logits of them stay small: `normed` [tokens, hidden] are the
// normalised outputs, `slope` takes the loss's slope by them. Returns the sum
// of what it returned, and the slope by the outputs [batch, tokens, hidden].
using HeadChunk =
    std::function<double(int64_t first, int64_t last, const at::Tensor& normed, at::Tensor& slope)>;
double BackwardThroughHead(const OutputHead& head, const at::Tensor& outputs,
                           const HeadChunk& chunk, at::Tensor& slope);

}  // namespace quantry::engine
