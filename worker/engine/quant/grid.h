#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

// Scale and zero point of every group of one weight, on the weight's device.
struct GroupGrid {
  at::Tensor scales;  // fp32 [out, groups], each exactly representable in the storage dtype
  at::Tensor zeros;   // fp32 [out, groups], integers zmin .. qmax
};

// Storage dtype of scales for a checkpoint of dtype `model_dtype`: bf16 for
// bf16 checkpoints, fp16 for all others (readers of packed formats know no
// third).
at::ScalarType ScaleDtypeFor(at::ScalarType model_dtype);

// Rounds to `dtype` and back to fp32, keeping every scale positive and
// finite: underflow becomes the smallest positive value, overflow the largest.
// The result is exact in fp16 for either dtype, so that every output format
// holds the same scales: bf16 ones are also multiples of 2^-24 of at most 65280.
at::Tensor RoundScales(const at::Tensor& scales, at::ScalarType dtype);

// Min/max grid of weight [out, in] fp32. Ranges always include 0 (spec:
// targets.md, "RTN here").
//   asymmetric: s = max(hi - lo, 1e-5) / qmax, z = clamp(round(-lo / s), 0, qmax)
//   symmetric:  s = absmax / ((2^b - 1) / 2),  z = 2^(b-1)
// With zero_at_least_one a group whose z would be 0 gets z = 1 and, because a
// code below zero is then spent, s = max(hi, 1e-5) / (qmax - 1): hi stays on
// the grid (clamping z alone would cut it off by a whole step).
// Scales are rounded to `scale_dtype` before zero points are computed. The
// group size must divide `in` (CheckGroupSize).
GroupGrid MinMaxGrid(const at::Tensor& weight, const GridSpec& spec, at::ScalarType scale_dtype);

// The same grid from ranges [out, groups] that hold 0 (lo <= 0 <= hi).
GroupGrid GridOfRange(const at::Tensor& lo, const at::Tensor& hi, const GridSpec& spec,
                      at::ScalarType scale_dtype);

// Its scales before they are rounded; differentiable.
at::Tensor ScalesOf(const at::Tensor& lo, const at::Tensor& hi, const GridSpec& spec);
// The same of groups whose zero point is raised from 0 to 1 (zero_at_least_one):
// they reach up to `hi` with one level less.
at::Tensor ScalesOfRaisedZero(const at::Tensor& hi, const GridSpec& spec);

// clamp(round(W / s) + z, 0, qmax) as uint8 [out, in]; rounds half to even.
at::Tensor RoundToGrid(const at::Tensor& weight, const GridSpec& spec, const GroupGrid& grid);

// How a linear's integers are to be read.
struct LinearFormat {
  GridSpec grid;
  at::ScalarType scale_dtype = at::kHalf;
};

// A linear of these parts, moved to the CPU. codes: uint8 [out, in].
QuantizedLinear MakeQuantizedLinear(const std::string& name, const at::Tensor& codes,
                                    const GroupGrid& grid, const at::Tensor& bias,
                                    const LinearFormat& format);

// Rounding to nearest: MinMaxGrid, then RoundToGrid. Results on the CPU.
QuantizedLinear QuantizeNearest(const std::string& name, const at::Tensor& weight,
                                const at::Tensor& bias, const GridSpec& spec,
                                at::ScalarType scale_dtype);

// What the weight becomes on its own min/max grid, fp32 [out, in]: equals
// QuantizeNearest(...).Dequantize() bit for bit, without making integers.
// The search loops of the methods live in this function.
at::Tensor FakeQuantize(const at::Tensor& weight, const GridSpec& spec, at::ScalarType scale_dtype);

// A method's result, before hours go by: scales must survive every output's
// dtype (RoundScales) and zero points lie within the grid. EngineError BUG
// naming the linear otherwise.
void CheckStorable(const QuantizedLinear& linear);

// Scales of a grid that are the largest their dtype holds: what lies beyond was
// cut off (RoundScales), and their groups with it. 0 for other kinds of weights.
int64_t ClippedScales(const QuantizedLinear& linear);

// Name and in_features of a linear that is to be quantized.
using NamedWidth = std::pair<std::string, int64_t>;

// Throws INVALID_SPEC unless bits are 2, 3, 4, 6 or 8 and the group size divides
// every width; the message lists the linears that do not divide and the sizes
// that would fit all of them.
void CheckGrid(const GridSpec& spec, const std::vector<NamedWidth>& linears);

}  // namespace quantry::engine
