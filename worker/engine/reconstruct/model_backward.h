#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstdint>
#include <functional>
#include <vector>

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
};

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

// part(windows) summed with `add` over equal shares of `windows`, one a core,
// where they divide evenly and the device is the host.
template <typename Part, typename Add>
auto OverShares(const at::Device& device, const std::vector<int64_t>& windows, const Part& part,
                const Add& add) {
  using Result = decltype(part(windows));
  const auto count = static_cast<int64_t>(windows.size());
  const int64_t threads = at::get_num_threads();
  const int64_t shares = device.is_cpu() && count % threads == 0 ? threads : 1;
  if (shares == 1) return part(windows);
  std::vector<Result> parts(shares);
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      const auto first = windows.begin() + share * count / shares;
      parts[share] = part(std::vector<int64_t>(first, first + count / shares));
    }
  });
  for (int64_t share = 1; share < shares; ++share) add(parts[0], parts[share]);
  return std::move(parts[0]);
}

}  // namespace quantry::engine
