#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace quantry::engine::test {

// H [columns, columns] of inputs, damped, and the factor U of its inverse, U^T U.
struct Moments {
  at::Tensor hessian, upper;
};

// Of correlated random inputs.
inline Moments RandomMoments(int64_t columns) {
  const at::Tensor mix = at::randn({columns, columns}) * 0.3 + at::eye(columns);
  const at::Tensor x = at::matmul(at::randn({4 * columns, columns}), mix);
  at::Tensor h = at::matmul(x.t(), x).to(at::kDouble);
  h.diagonal().add_(0.01 * h.diagonal().mean().item<double>());
  return {h, at::linalg_cholesky(at::linalg_inv(h), /*upper=*/true).to(at::kFloat)};
}

}  // namespace quantry::engine::test
