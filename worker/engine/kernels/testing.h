#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "worker/engine/quant/mixed_binary.h"

namespace quantry::engine::test {

inline at::Tensor Fp16(const at::Tensor& value) { return value.to(at::kHalf).to(at::kFloat); }

// A random weight with so many random columns salient and gains of both signs.
inline MixedBinaryWeight RandomWeight(int64_t rows, int64_t columns, int64_t salient) {
  MixedBinaryWeight weight;
  weight.columns = columns;
  weight.salient = std::get<0>(at::randperm(columns).narrow(0, 0, salient).sort()).to(at::kInt);
  weight.codes = at::randint(0, 16, {rows, salient}, at::kByte);
  weight.scales = Fp16(at::rand({rows}) * 0.02 + 1e-3);
  weight.zeros = at::randint(0, 16, {rows}, at::kByte);
  weight.signs = at::randint(0, 2, {rows, columns - salient}, at::kByte);
  weight.row_gain = Fp16(at::randn({rows}) * 0.02);
  weight.row_offset = Fp16(at::randn({rows}) * 1e-3);
  weight.column_gain = Fp16(at::randn({columns - salient}) * 0.3 + 1);
  return weight;
}

// x W'^T in fp64 from the dequantized weight.
inline at::Tensor Reference(const MixedBinaryWeight& weight, const at::Tensor& x) {
  return at::matmul(x.to(at::kDouble), weight.Dequantize().to(at::kDouble).t());
}

inline double RelativeError(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got.to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

// product(weight, x): a token of zeros gives zeros, one with a value that is not finite NaN, and
// the others are as without them.
template <typename Product>
void ExpectTokensStayApart(const Product& product) {
  const MixedBinaryWeight weight = RandomWeight(40, 80, 16);
  at::Tensor x = at::randn({5, 80});
  x[1].zero_();
  x[2][weight.salient[3].item<int64_t>()] = std::numeric_limits<float>::infinity();
  x[3][weight.OtherColumns()[3].item<int64_t>()] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor y = product(weight, x);
  EXPECT_TRUE(at::equal(y[1], at::zeros({40})));
  EXPECT_TRUE(y[2].isnan().all().template item<bool>());
  EXPECT_TRUE(y[3].isnan().all().template item<bool>());
  for (const int64_t t : {0, 4}) {
    EXPECT_LT(RelativeError(y[t], Reference(weight, x[t])), 1e-6);
  }
}

struct PackedShape {
  std::string name;
  int64_t rows, columns, salient, tokens;
};

inline const std::vector<PackedShape> kPackedShapes = {
    {"one weight, salient", 1, 1, 1, 1},
    {"one weight, binary", 1, 1, 0, 2},
    {"no salient columns", 40, 50, 0, 3},
    {"all salient", 33, 37, 37, 2},
    {"stories260k gate", 172, 64, 13, 5},
    {"stories260k down", 64, 172, 35, 9},
    {"odd everywhere", 95, 577, 117, 7},
    {"more than one block of signs", 64, 2700, 541, 3},
    {"more than one block of codes", 31, 5500, 1101, 1},
};

}  // namespace quantry::engine::test
