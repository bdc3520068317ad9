#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

namespace quantry::engine {

// A Hadamard matrix H of one order: entries +-1, H H^T = order I.
struct HadamardFactor {
  at::Tensor matrix;  // fp64 [order, order]; undefined when there is none here
  std::string construction;
};

// 1 and 2; Paley I where order - 1 is a prime power = 3 mod 4; Paley II where
// order / 2 - 1 is one = 1 mod 4; Williamson for 172 (spec: baselines.md 3.5).
HadamardFactor MakeHadamardFactor(int64_t order);

}  // namespace quantry::engine
