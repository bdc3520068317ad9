#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace quantry::engine {

struct PbllmOptions {
  enum class Metric { kHessian, kMagnitude };
  Metric metric = Metric::kHessian;
  double salient_ratio = 0.1;  // kept in 8 bits
  // Means over the binarized entries only. Default: over all columns, the
  // others counting as 0 (the authors' code).
  bool count_norm = false;
  int64_t block_size = 128;  // columns compensated at a time
};

constexpr int kPbllmHighBits = 8;

// One weight through PB-LLM.
struct PartialBinary {
  at::Tensor values;    // fp32 [n, m]
  at::Tensor low;       // bool [n, m]: binarized entries
  at::Tensor low_mean;  // fp32 [n, 1]
  at::Tensor low_gain;  // fp32 [n, 1]
  at::Tensor scales;    // fp32 [n, 1] of the 8-bit grid
  at::Tensor zeros;     // fp32 [n, 1]
  double loss = 0;      // 1/2 sum ((w - q) / U_jj)^2
};

// Entries of a matrix that are binarized: int(N * (1 - ratio)) + 1, without
// ties; at most all but one.
int64_t PbllmLowCount(int64_t entries, double salient_ratio);

// Salient entries on an 8-bit grid, the others mean + gain * sign, column by
// column with GPTQ's compensation (spec: baselines.md 5.1).
//   upper: fp32 [m, m], FactorInverse; undefined = no compensation and the
//   metric kMagnitude. scale_dtype: storage of the 8-bit scales.
PartialBinary BinarizePartially(const at::Tensor& weight, const at::Tensor& upper,
                                at::ScalarType scale_dtype, const PbllmOptions& options);

// Bits such a weight takes: one or eight a weight, a bitmap, three fp16 and an
// 8-bit zero point a row (spec: baselines.md 0.3).
int64_t PbllmBits(int64_t rows, int64_t columns, double salient_ratio);

}  // namespace quantry::engine
