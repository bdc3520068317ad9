#include "worker/engine/nn/simd_kernels.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace quantry::engine {
namespace {

class SimdKernels : public testing::Test {
 protected:
  void SetUp() override {
    if (!simd::Available()) GTEST_SKIP() << "no AVX2";
    at::manual_seed(3);
  }
};

// Whole vectors, rests of both sides, and a row longer than what is taken of it.
TEST_F(SimdKernels, TransposesAnySize) {
  for (const int64_t rows : {1, 7, 8, 16, 21}) {
    for (const int64_t columns : {1, 5, 8, 24, 27}) {
      const at::Tensor from = at::randn({rows, columns + 3});
      at::Tensor to = at::full({columns, rows}, -1.0F);
      simd::Transpose(from.const_data_ptr<float>(), columns + 3, rows, columns,
                      to.mutable_data_ptr<float>());
      EXPECT_TRUE(at::equal(to, from.slice(1, 0, columns).t())) << rows << " x " << columns;
    }
  }
}

TEST_F(SimdKernels, SumsThreeRowsAndSquaredDistances) {
  for (const int64_t count : {1, 8, 13, 64}) {
    const at::Tensor rows = at::randn({3, count});
    const auto* row = rows.const_data_ptr<float>();
    at::Tensor sum = at::empty({count});
    simd::WeightedSum({row, 0.5F}, {row + count, -2.0F}, {row + 2 * count, 3.0F}, count,
                      sum.mutable_data_ptr<float>());
    const at::Tensor wanted = 0.5 * rows[0] - 2.0 * rows[1] + 3.0 * rows[2];
    EXPECT_LT((sum - wanted).abs().max().item<double>(), 1e-6);
    const auto apart = (rows[0].to(at::kDouble) - rows[1]).square().sum().item<double>();
    EXPECT_NEAR(simd::SquaredDistance(row, row + count, count), apart, 1e-6 * apart);
  }
}

}  // namespace
}  // namespace quantry::engine
