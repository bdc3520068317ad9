#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace quantry::engine::test {

// fp32 [rows, values / rows], row after row.
inline at::Tensor Matrix(const std::vector<float>& values, int64_t rows) {
  return at::tensor(values, at::kFloat).view({rows, -1});
}

}  // namespace quantry::engine::test
