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

std::vector<at::Tensor> LookedUp(const Operands& of, SignSums sums = SignSums::kFloat,
                                 bool wants_x = true) {
  const SignProduct product(of.signs, sums);
  at::Tensor y = of.start.clone();
  const SignProduct::Kept kept = product.AddTo(y, of.x, of.scales);
  const auto slopes = product.Backward(of.slope, of.x, of.scales, kept, wants_x);
  return {y, slopes.scales.gain, slopes.scales.offset, slopes.scales.column, slopes.x};
}

double RelativeError(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got - wanted).norm() / wanted.norm()).item<double>();
}

class SignProductTest : public testing::TestWithParam<std::tuple<Case, SignSums>> {
 protected:
  const Case& shape() const { return std::get<0>(GetParam()); }
  SignSums sums() const { return std::get<1>(GetParam()); }
  void SetUp() override {
    if (!SignProduct::Available()) GTEST_SKIP() << "no AVX2";
    at::manual_seed(5);
  }
};

TEST_P(SignProductTest, EqualsTheMatrixAndItsGradients) {
  const Operands of(shape());
  const auto got = LookedUp(of, sums()), wanted = Reference(of);
  const double most = sums() == SignSums::kFloat ? 1e-6 : 3e-3;
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_LT(RelativeError(got[i], wanted[i]), most) << "result " << i;
  }
}

// Nothing beyond the last token, row or column is read: it would be NaN here.
TEST_P(SignProductTest, ReadsNothingBeyondItsOperands) {
  const Operands of(shape());
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
  const auto got = LookedUp(inside, sums()), wanted = LookedUp(of, sums());
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_TRUE(at::equal(got[i], wanted[i])) << i;
}

TEST_P(SignProductTest, GivesTheSameBytesOnAnyNumberOfThreads) {
  const Operands of(shape());
  const auto with = [&](int count) {
    const test::Threads threads(count);
    return LookedUp(of, sums());
  };
  const auto one = with(1), three = with(3);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], three[i])) << i;
}

TEST_P(SignProductTest, LeavesTheInputsGradientOut) {
  const Operands of(shape());
  const auto with = LookedUp(of, sums()), without = LookedUp(of, sums(), false);
  EXPECT_FALSE(without[4].defined());
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(at::equal(with[i], without[i])) << i;
}

// The last one's blocks are so many that LibTorch sums them on several threads.
INSTANTIATE_TEST_SUITE_P(
    Shapes, SignProductTest,
    testing::Combine(testing::Values(Case{1, 1, 1}, Case{8, 4, 32}, Case{9, 5, 33}, Case{7, 13, 31},
                                     Case{16, 96, 64}, Case{100, 3, 70}, Case{3, 250, 9},
                                     Case{64, 197, 256}, Case{64, 197, 3300}),
                     testing::Values(SignSums::kFloat, SignSums::kFixed)));

class SignSumsTest : public testing::TestWithParam<SignSums> {
 protected:
  void SetUp() override {
    if (!SignProduct::Available()) GTEST_SKIP() << "no AVX2";
    at::manual_seed(6);
  }
};
INSTANTIATE_TEST_SUITE_P(Kinds, SignSumsTest, testing::Values(SignSums::kFloat, SignSums::kFixed));

// A value that is not finite must reach the loss, not vanish in a table.
TEST_P(SignSumsTest, NanAndInfinityReachTheOutputs) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Operands of({5, 9, 40});
    of.x[37][8] = value;
    const at::Tensor y = LookedUp(of, GetParam())[0];
    EXPECT_FALSE(at::isfinite(y[37]).any().item<bool>());
    EXPECT_TRUE(at::isfinite(y[36]).all().item<bool>());
  }
}

// Zeros, and numbers of which no scale could be made, are zeros and not NaN.
TEST_P(SignSumsTest, TokensOfNothingGiveNothing) {
  Operands of({5, 9, 40});
  of.x[3].zero_();
  of.x[4].fill_(1e-39);
  const at::Tensor y = LookedUp(of, GetParam())[0];
  EXPECT_TRUE(at::equal(y[3], of.start[3]));
  EXPECT_TRUE(at::equal(y[4], of.start[4]));
}

// All columns of one sign and size: the sum that comes closest to overflowing.
TEST_P(SignSumsTest, TheLargestSumsFit) {
  Operands of({2, 96, 32});
  of.signs[0].fill_(1);
  of.signs[1].zero_();
  of.x.fill_(0.37);
  of.scales.column.fill_(1.3);
  EXPECT_LT(RelativeError(LookedUp(of, GetParam())[0], Reference(of)[0]), 1e-3);
}

// Massive activations: a token's scale is that of its sum, not of 96 times its largest.
TEST_P(SignSumsTest, AnOutlierCostsNoMoreThanBfloat16Would) {
  Operands of({64, 192, 256});
  of.x.select(1, 17).mul_(1000);
  of.start.zero_();
  of.scales.offset.zero_();
  const at::Tensor wanted = Reference(of)[0];
  const at::Tensor rounded = (of.x * of.scales.column).to(at::kBFloat16).to(at::kDouble);
  const at::Tensor bfloat16 =
      at::mm(rounded, (of.signs.to(at::kDouble) * 2 - 1).t()) * of.scales.gain.to(at::kDouble);
  EXPECT_LT(RelativeError(LookedUp(of, GetParam())[0], wanted), RelativeError(bfloat16, wanted));
}

}  // namespace
}  // namespace quantry::engine
