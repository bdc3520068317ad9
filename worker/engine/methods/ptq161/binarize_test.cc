#include "worker/engine/methods/ptq161/binarize.h"

#include <gtest/gtest.h>

#include "worker/engine/testing/matrix.h"

namespace quantry::engine {
namespace {

using test::Matrix;

at::Tensor Levels(const BinaryRows& rows) {
  const at::Tensor sign = rows.signs.to(at::kFloat).mul(2).sub(1);
  return sign * rows.gain.unsqueeze(-1) + rows.mean.unsqueeze(-1);
}

// Spec 11.2, columns 1 and 3 salient.
const at::Tensor kGolden = Matrix({0.3, -1.0, -0.1, 0.5, 0.2, 0, 0.4, 0, -0.2, -0.6}, 2);

TEST(Ptq161Binarize, GoldenSalientColumns) {
  const SalientGrid grid = FitSalientGrid(kGolden);
  EXPECT_NEAR(grid.scales[0].item<double>(), 0.1, 1e-4);
  EXPECT_NEAR(grid.scales[1].item<double>(), 0.0666667, 1e-4);
  EXPECT_TRUE(at::equal(grid.zeros, at::tensor({10.0, 9.0}, at::kFloat)));
  const at::Tensor columns = kGolden.index_select(1, at::tensor({1, 3}, at::kLong));
  const at::Tensor values = SalientCodes(columns, grid).to(at::kFloat);
  const at::Tensor got = (values - grid.zeros.unsqueeze(-1)) * grid.scales.unsqueeze(-1);
  EXPECT_TRUE(at::allclose(got, Matrix({-1.0, 0.5, 0.4, -0.2}, 2), 1e-3));
}

TEST(Ptq161Binarize, GoldenBinaryColumns) {
  const at::Tensor columns = kGolden.index_select(1, at::tensor({0, 2, 4}, at::kLong));
  const BinaryRows rows = BinarizeRows(columns, false);
  EXPECT_NEAR(rows.mean[0].item<double>(), 0.133333, 1e-6);
  EXPECT_NEAR(rows.gain[0].item<double>(), 0.2, 1e-6);
  // Row 1's third level: {0, -0.6} held by two levels.
  const at::Tensor wanted = Matrix({0.333333, -0.066667, 0.333333, 0, 0, -0.6}, 2);
  EXPECT_TRUE(at::allclose(Levels(rows), wanted, 1e-5, 1e-6));
}

// Spec 11.3, 2: s (q - z) with integers 0 <= q <= 15 and z, so 16 values a row at most.
TEST(Ptq161Binarize, Invariant2SalientErrorIsHalfAStep) {
  at::manual_seed(2);
  for (const double spread : {1e-3, 1.0, 50.0}) {
    const at::Tensor weight = at::randn({64, 40}) * spread + spread * 0.1;
    const SalientGrid grid = FitSalientGrid(weight);
    const at::Tensor codes = SalientCodes(weight, grid).to(at::kFloat);
    EXPECT_LE(codes.max().item<double>(), 15.0);
    EXPECT_TRUE(at::equal(grid.zeros, grid.zeros.round().clamp(0, 15)));
    const at::Tensor got = (codes - grid.zeros.unsqueeze(-1)) * grid.scales.unsqueeze(-1);
    for (int64_t row = 0; row < got.size(0); ++row) {
      EXPECT_LE(std::get<0>(at::_unique(got[row])).size(0), 16);
    }
    const at::Tensor scales = grid.scales.to(at::kDouble).unsqueeze(-1);
    const at::Tensor steps = got.to(at::kDouble) / scales;
    EXPECT_LE((steps - steps.round()).abs().max().item<double>(), 1e-5);
    const at::Tensor off = (got.to(at::kDouble) - weight.to(at::kDouble)).abs() / scales;
    EXPECT_LE(off.max().item<double>(), 0.5 + 1e-5);
  }
}

// Scope of the grid: columns that become binary widen it, or not.
TEST(Ptq161Binarize, RangeIncludesZeroAndWhatItIsGiven) {
  const SalientGrid grid = FitSalientGrid(Matrix({1, 2, 3, -1, -2, -3, 0, 0, 0}, 3));
  EXPECT_TRUE(at::equal(grid.zeros, at::tensor({0.0, 15.0, 7.0}, at::kFloat)));
  EXPECT_NEAR(grid.scales[0].item<double>(), 0.2, 2e-4);
  EXPECT_NEAR(grid.scales[2].item<double>(), 2.0 / 15.0, 2e-4);
}

struct RowCase {
  const char* name;
  std::vector<float> row;
  std::vector<float> wanted;
};

class RowCaseTest : public ::testing::TestWithParam<RowCase> {};

TEST_P(RowCaseTest, LevelsAre) {
  for (const bool centered : {false, true}) {
    const at::Tensor levels = Levels(BinarizeRows(Matrix(GetParam().row, 1), centered));
    EXPECT_TRUE(at::allclose(levels, Matrix(GetParam().wanted, 1), 1e-6, 1e-7)) << levels;
  }
}

// Spec 11.1 and 11.3, 11: rows that need a third level or have none.
INSTANTIATE_TEST_SUITE_P(
    Rows, RowCaseTest,
    ::testing::Values(RowCase{"zeros", {0, 0, 0}, {0, 0, 0}},
                      RowCase{"constant", {0.7f, 0.7f, 0.7f}, {0.7f, 0.7f, 0.7f}},
                      RowCase{"negative_constant", {-2, -2}, {-2, -2}},
                      RowCase{"one_value_and_zeros", {0, 0.5f, 0}, {0, 0.5f, 0}},
                      RowCase{"single_column", {3}, {3}},
                      RowCase{"symmetric", {1, -1, 1, -1}, {1, -1, 1, -1}}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(Ptq161Binarize, ZerosAreLeftOutOfTheStatistics) {
  const BinaryRows pruned = BinarizeRows(Matrix({1, 0, 3, 0, -1}, 1), false);
  EXPECT_NEAR(pruned.mean.item<double>(), 1.0, 1e-6);
  EXPECT_NEAR(pruned.gain.item<double>(), 5.0 / 3.0, 1e-6);
  const BinaryRows centered = BinarizeRows(Matrix({1, 0, 3, 0, -1}, 1), true);
  EXPECT_NEAR(centered.gain.item<double>(), 4.0 / 3.0, 1e-6);
  // W == mu counts as +1: one bit holds no third level.
  EXPECT_TRUE(at::equal(pruned.signs, at::tensor({1, 0, 1, 0, 0}, at::kByte).view({1, 5})));
}

TEST(Ptq161Binarize, NoColumns) {
  const BinaryRows rows = BinarizeRows(at::empty({3, 0}), false);
  EXPECT_TRUE(at::equal(rows.gain, at::zeros({3})));
  EXPECT_EQ(rows.signs.sizes(), (std::vector<int64_t>{3, 0}));
}

}  // namespace
}  // namespace quantry::engine
