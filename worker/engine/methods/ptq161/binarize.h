#pragma once

#include <ATen/ATen.h>

namespace quantry::engine {

// The 4-bit grid of the salient columns, one scale and zero point a row
// (spec: ptq161.md 2.3).
struct SalientGrid {
  at::Tensor scales;  // fp32 [n], representable in fp16, never below (hi - lo) / 15
  at::Tensor zeros;   // fp32 [n], integers 0 .. 15
};

// Range of `weight` [n, any] with 0 in it; rows of zeros get [-1, 1].
SalientGrid FitSalientGrid(const at::Tensor& weight);

// uint8 [n, k] of `weight` fp32 [n, k]; half to even, clamped.
at::Tensor SalientCodes(const at::Tensor& weight, const SalientGrid& grid);

// Row by row a sign a weight, a gain and the frozen mean (spec: ptq161.md 3.1).
struct BinaryRows {
  at::Tensor signs;  // uint8 [n, m], 1 where W >= mu
  at::Tensor gain;   // alpha fp32 [n]: mean |W|, or mean |W - mu|, of nonzero entries
  at::Tensor mean;   // mu fp32 [n]: mean of nonzero entries, 0 when there are none
};

// `weight` fp32 [n, m]: the columns that are not salient. sign(0) is +1, as the
// paper has it: one bit holds no third level. A row whose nonzero entries are
// all equal would need that level in the authors' code; it gets mean and gain
// with which two levels hold it exactly instead.
BinaryRows BinarizeRows(const at::Tensor& weight, bool centered_gain);

}  // namespace quantry::engine
