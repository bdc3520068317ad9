#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "worker/engine/methods/billm/split.h"

namespace quantry::engine {

// One weight through BiLLM.
struct BinarizedColumns {
  at::Tensor values;    // fp32 [n, m]; NaN where a block's saliency is not finite
  int64_t salient = 0;  // columns binarized twice, all blocks together
  double loss = 0;      // 1/2 sum ((W - Q) / d)^2
};

// Block after block of columns (spec: baselines.md 4.2): split, binarize, and
// move the error onto the columns after the block.
//   upper: fp32 [m, m], Cholesky factor of the inverse second moments
//   (FactorInverse); undefined = no compensation and the metric kMagnitude.
BinarizedColumns BinarizeColumns(const at::Tensor& weight, const at::Tensor& upper,
                                 const BillmOptions& options);

// Bits such a weight takes: signs, second signs of the salient columns, which
// are as many as the group bits they need not, two bitmaps, and eight fp16 a
// row and block (spec: baselines.md 0.3). Does not depend on the split.
constexpr int64_t BillmBits(int64_t rows, int64_t columns, int64_t block_size) {
  const int64_t blocks = (columns + block_size - 1) / block_size;
  return 2 * rows * columns + columns + 128 * rows * blocks;
}

}  // namespace quantry::engine
