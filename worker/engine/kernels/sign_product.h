#pragma once

#include <ATen/ATen.h>

#include "worker/engine/kernels/sign_blocks.h"

namespace quantry::engine {

// y += x W^T of W = (A S + C) r2^T, S [n, m] of signs, A and C [n], r2 [m]
// (spec: ptq161.md 3.4), and its gradients in all but S, in fp32 on the CPU.
// Equal up to the order of sums to the products with S as a matrix, which it
// outruns by table lookup (sign_blocks.h), but for rounding with SignSums::kFixed.
// Bytes of a result depend neither on threads nor on how tokens are batched.
class SignProduct {
 public:
  // Whether this CPU runs it (AVX2).
  static bool Available();

  // signs: uint8 [n, m], 1 where +1; neither side 0.
  explicit SignProduct(const at::Tensor& signs, SignSums sums = SignSums::kFloat);

  // fp32 vectors, contiguous.
  struct Scales {
    at::Tensor gain;    // A [n]
    at::Tensor offset;  // C [n]
    at::Tensor column;  // r2 [m]
  };

  // What the backward pass wants back of a forward one.
  struct Kept {
    at::Tensor products;  // S (r2 x)^T, by blocks of tokens
    at::Tensor totals;    // r2 . x of every token
  };

  // Adds to y [T, n]; x [T, m]. Both fp32 and contiguous.
  Kept AddTo(const at::Tensor& y, const at::Tensor& x, const Scales& scales) const;

  // Gradients, fp32: `scales` in the members of Scales, x undefined unless asked for.
  struct Gradients {
    Scales scales;
    at::Tensor x;  // [T, m]
  };

  // slope = dL/dy [T, n].
  Gradients Backward(const at::Tensor& slope, const at::Tensor& x, const Scales& scales,
                     const Kept& kept, bool wants_x) const;

 private:
  SignSums sums_;
  int64_t rows_, columns_;
  at::Tensor by_row_;     // codes of S [n, m / 4]
  at::Tensor by_column_;  // codes of S^T [m, n / 4]
};

}  // namespace quantry::engine
