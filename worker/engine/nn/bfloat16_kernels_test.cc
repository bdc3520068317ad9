#include "worker/engine/nn/bfloat16_kernels.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace quantry::engine {
namespace {

class Bfloat16Kernels : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!simd::HasBfloat16()) GTEST_SKIP() << "no AVX512_BF16";
    at::manual_seed(4);
  }
};

TEST_F(Bfloat16Kernels, RoundAndWidenAsLibTorchDoes) {
  at::Tensor values = at::randn({1000}) * at::pow(10.0, at::randn({1000}) * 8.0);
  constexpr float kEnd = std::numeric_limits<float>::infinity();
  values.slice(0, 0, 6).copy_(at::tensor({0.0F, -0.0F, kEnd, -kEnd, 1.00390625F, 1.01171875F}));
  for (const int64_t count : {1000, 17, 16, 3}) {
    at::Tensor rounded = at::zeros({1000}, at::kBFloat16), wide = at::zeros({1000});
    auto* bits = static_cast<uint16_t*>(rounded.mutable_data_ptr());
    simd::RoundToBfloat16(values.const_data_ptr<float>(), count, bits);
    EXPECT_TRUE(at::equal(rounded.slice(0, 0, count), values.slice(0, 0, count).to(at::kBFloat16)));
    simd::WidenBfloat16(bits, count, wide.mutable_data_ptr<float>());
    EXPECT_TRUE(at::equal(wide, rounded.to(at::kFloat))) << "nothing beyond " << count;
  }
  const float missing = std::numeric_limits<float>::quiet_NaN();
  uint16_t bits = 0;
  float back = 0;
  simd::RoundToBfloat16(&missing, 1, &bits);
  simd::WidenBfloat16(&bits, 1, &back);
  EXPECT_TRUE(std::isnan(back));
}

// c = a b in both orders of a, of every size around the kernel's tiles.
TEST_F(Bfloat16Kernels, ProductsOfPairs) {
  for (const int64_t m : {1, 2, 7, 8, 19}) {
    for (const int64_t n : {1, 8, 16, 17, 32, 33, 64}) {
      for (const int64_t k : {1, 2, 31, 64}) {
        SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << k);
        const at::Tensor a = at::randn({m, k}), b = at::randn({k, n});
        const int64_t pairs = simd::PairsOf(k);
        std::vector<simd::Pair> rows(m * pairs), stacked(pairs * n), turned(pairs * m);
        simd::PairColumns(a.const_data_ptr<float>(), k, m, k, rows.data());
        simd::PairRows(b.const_data_ptr<float>(), n, k, n, stacked.data());
        simd::PairRows(a.t().contiguous().const_data_ptr<float>(), m, k, m, turned.data());
        const at::Tensor start = at::randn({m, n + 3});
        at::Tensor one = start.clone(), two = start.clone();
        simd::MultiplyAddPairs(m, n, pairs, {rows.data(), pairs, 1}, stacked.data(), n,
                               one.mutable_data_ptr<float>(), n + 3, false);
        simd::MultiplyAddPairs(m, n, pairs, {turned.data(), 1, m}, stacked.data(), n,
                               two.mutable_data_ptr<float>(), n + 3, true);
        const auto rounded = [](const at::Tensor& x) {
          return x.to(at::kBFloat16).to(at::kDouble);
        };
        const at::Tensor wanted = at::mm(rounded(a), rounded(b));
        const double most = 1e-6 * static_cast<double>(k + 1);
        const at::Tensor added = wanted + start.slice(1, 0, n);
        EXPECT_LT((one.slice(1, 0, n) - wanted).abs().max().item<double>(), 10 * most);
        EXPECT_LT((two.slice(1, 0, n) - added).abs().max().item<double>(), 10 * most);
        EXPECT_TRUE(at::equal(one.slice(1, n), start.slice(1, n))) << "nothing beside them";
        EXPECT_TRUE(at::equal(two.slice(1, n), start.slice(1, n))) << "nothing beside them";
      }
    }
  }
}

}  // namespace
}  // namespace quantry::engine
