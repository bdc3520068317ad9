#include "worker/engine/kernels/sign_product.h"

#include <gtest/gtest.h>

#include <limits>

#include "worker/engine/testing/threads.h"

namespace quantry::engine {
namespace {

struct Case {
  int64_t rows, columns, tokens;
};

// A product and what it is taken of, all random.
struct Operands {
  explicit Operands(const Case& shape)
      : signs(at::randn({shape.rows, shape.columns}).gt(0).to(at::kByte)),
        scales{at::randn({shape.rows}), at::randn({shape.rows}), at::randn({shape.columns})},
        x(at::randn({shape.tokens, shape.columns})),
        start(at::randn({shape.tokens, shape.rows})),
        slope(at::randn({shape.tokens, shape.rows})) {}

  at::Tensor signs;
  SignProduct::Scales scales;
  at::Tensor x, start, slope;
};

// The same through autograd in fp64: y, then gradients of A, C, r2 and x.
std::vector<at::Tensor> Reference(const Operands& of) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& leaf : {of.scales.gain, of.scales.offset, of.scales.column, of.x}) {
    leaves.push_back(leaf.to(at::kDouble).requires_grad_());
  }
  const at::Tensor signs = of.signs.to(at::kDouble) * 2 - 1;
  const at::Tensor weight =
      (leaves[0].unsqueeze(1) * signs + leaves[1].unsqueeze(1)) * leaves[2].unsqueeze(0);
  const at::Tensor y = of.start + at::mm(leaves[3], weight.t());
  y.backward(of.slope.to(at::kDouble));
  std::vector<at::Tensor> results = {y.detach()};
  for (const at::Tensor& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

std::vector<at::Tensor> LookedUp(const Operands& of, bool wants_x = true) {
  const SignProduct product(of.signs);
  at::Tensor y = of.start.clone();
  const SignProduct::Kept kept = product.AddTo(y, of.x, of.scales);
  const auto slopes = product.Backward(of.slope, of.x, of.scales, kept, wants_x);
  return {y, slopes.scales.gain, slopes.scales.offset, slopes.scales.column, slopes.x};
}

class SignProductTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!SignProduct::Available()) GTEST_SKIP() << "no AVX2";
    at::manual_seed(5);
  }
};

TEST_P(SignProductTest, EqualsTheMatrixAndItsGradients) {
  const Operands of(GetParam());
  const auto got = LookedUp(of), wanted = Reference(of);
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double error = ((got[i] - wanted[i]).norm() / wanted[i].norm()).item<double>();
    EXPECT_LT(error, 1e-6) << "result " << i;
  }
}

// Nothing beyond the last token, row or column is read: it would be NaN here.
TEST_P(SignProductTest, ReadsNothingBeyondItsOperands) {
  const Operands of(GetParam());
  const auto fenced = [](const at::Tensor& inner) {
    const at::Tensor all = at::full({inner.numel() + 64}, std::numeric_limits<float>::quiet_NaN());
    all.slice(0, 0, inner.numel()).copy_(inner.flatten());
    return all.slice(0, 0, inner.numel()).view(inner.sizes());
  };
  Operands inside = of;
  for (at::Tensor* one : {&inside.scales.gain, &inside.scales.offset, &inside.scales.column,
                          &inside.x, &inside.start, &inside.slope}) {
    *one = fenced(*one);
  }
  const auto got = LookedUp(inside), wanted = LookedUp(of);
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_TRUE(at::equal(got[i], wanted[i])) << i;
}

TEST_P(SignProductTest, GivesTheSameBytesOnAnyNumberOfThreads) {
  const Operands of(GetParam());
  const auto with = [&](int count) {
    const test::Threads threads(count);
    return LookedUp(of);
  };
  const auto one = with(1), three = with(3);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], three[i])) << i;
}

TEST_P(SignProductTest, LeavesTheInputsGradientOut) {
  const Operands of(GetParam());
  const auto with = LookedUp(of), without = LookedUp(of, false);
  EXPECT_FALSE(without[4].defined());
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(at::equal(with[i], without[i])) << i;
}

// The last one's blocks are so many that LibTorch sums them on several threads.
INSTANTIATE_TEST_SUITE_P(Shapes, SignProductTest,
                         testing::Values(Case{1, 1, 1}, Case{8, 4, 32}, Case{9, 5, 33},
                                         Case{7, 13, 31}, Case{16, 96, 64}, Case{100, 3, 70},
                                         Case{3, 250, 9}, Case{64, 197, 256}, Case{64, 197, 3300}));

// A value that is not finite must reach the loss, not vanish in a table.
TEST(SignProductValues, NanAndInfinityReachTheOutputs) {
  if (!SignProduct::Available()) GTEST_SKIP() << "no AVX2";
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Operands of({5, 9, 40});
    of.x[37][8] = value;
    const at::Tensor y = LookedUp(of)[0];
    EXPECT_FALSE(at::isfinite(y[37]).any().item<bool>());
    EXPECT_TRUE(at::isfinite(y[36]).all().item<bool>());
  }
}

}  // namespace
}  // namespace quantry::engine
