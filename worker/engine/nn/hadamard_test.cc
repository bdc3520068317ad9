#include "worker/engine/nn/hadamard.h"

#include <gtest/gtest.h>

#include "worker/engine/nn/hadamard_factor.h"

namespace quantry::engine {
namespace {

struct SizeCase {
  int64_t size;
  int64_t order;  // 0: none
  const char* construction;
};

class HadamardTest : public ::testing::TestWithParam<SizeCase> {};

// Q2, Q3 of spec/baselines.md 3.7.
TEST_P(HadamardTest, IsOrthogonal) {
  const auto hadamard = Hadamard::OfSize(GetParam().size);
  ASSERT_EQ(hadamard.has_value(), GetParam().order > 0);
  if (!hadamard) return;
  EXPECT_EQ(hadamard->order(), GetParam().order);
  EXPECT_EQ(hadamard->construction(), GetParam().construction);
  const at::Tensor h = hadamard->factor();
  EXPECT_TRUE(at::equal(at::mm(h, h.t()),
                        at::eye(h.size(0), at::kDouble) * static_cast<double>(h.size(0))));
  EXPECT_TRUE(at::equal(h.abs(), at::ones_like(h)));
  at::manual_seed(1);
  const at::Tensor x = at::randn({3, GetParam().size}, at::kDouble);
  const at::Tensor y = hadamard->Apply(x);
  EXPECT_TRUE(at::allclose(y.norm(2, -1), x.norm(2, -1), 1e-12));
  EXPECT_TRUE(at::allclose(hadamard->ApplyTransposed(y), x, 1e-12, 1e-12));
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, HadamardTest,
    ::testing::Values(SizeCase{1, 1, "sylvester"}, SizeCase{64, 1, "sylvester"},
                      SizeCase{2, 1, "sylvester"}, SizeCase{12, 12, "paley-1"},
                      SizeCase{24, 12, "paley-1"}, SizeCase{576, 36, "paley-2"},
                      SizeCase{1536, 12, "paley-1"}, SizeCase{896, 28, "paley-1"},
                      SizeCase{352, 44, "paley-1"}, SizeCase{172, 172, "williamson"},
                      SizeCase{5504, 172, "williamson"}, SizeCase{4864, 76, "paley-2"},
                      SizeCase{80, 20, "paley-1"}, SizeCase{104, 52, "paley-2"},
                      SizeCase{200, 100, "paley-2"}, SizeCase{28, 28, "paley-1"},
                      SizeCase{9, 0, ""}, SizeCase{6, 0, ""}, SizeCase{92, 0, ""}),
    [](const auto& param_info) { return std::to_string(param_info.param.size); });

// Paley I over GF(3^3), GF(7^3), and Paley II over GF(5^2), GF(3^2).
TEST(HadamardFactor, PrimePowers) {
  for (const int64_t order : {28, 344, 52, 20}) {
    const at::Tensor h = MakeHadamardFactor(order).matrix;
    ASSERT_TRUE(h.defined()) << order;
    EXPECT_TRUE(
        at::equal(at::mm(h, h.t()), at::eye(order, at::kDouble) * static_cast<double>(order)));
  }
}

// spec/baselines.md 3.6.
TEST(HadamardGolden, PaleyRows) {
  const at::Tensor h = MakeHadamardFactor(12).matrix;
  const char* rows[] = {"++++++++++++", "-+-+---+++-+", "-++-+---+++-", "--++-+---+++"};
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 12; ++j) {
      EXPECT_EQ(h[i][j].item<double>(), rows[i][j] == '+' ? 1.0 : -1.0) << i << " " << j;
    }
  }
}

TEST(HadamardGolden, Transforms) {
  const at::Tensor x = at::arange(1, 25, at::kDouble);
  const at::Tensor y = Hadamard::OfSize(24)->Apply(x);
  const at::Tensor want =
      at::tensor({61.237244, -2.449490, 9.797959, 0.0, 1.632993, 0.0, 11.430952, 0.0}, at::kDouble);
  EXPECT_TRUE(at::allclose(y.slice(0, 0, 8), want, 1e-6, 1e-6)) << y;
  EXPECT_NEAR(y.square().sum().item<double>(), 4900.0, 1e-9);
  const double a = 5.656854;
  const at::Tensor z = Hadamard::OfSize(8)->Apply(
      at::tensor({8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -8.0}, at::kDouble));
  EXPECT_TRUE(
      at::allclose(z, at::tensor({0.0, a, a, 0.0, a, 0.0, 0.0, a}, at::kDouble), 1e-6, 1e-6))
      << z;
}

}  // namespace
}  // namespace quantry::engine
