#include "worker/engine/methods/billm/columns.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "worker/engine/methods/billm/residual.h"
#include "worker/engine/methods/billm/split.h"
#include "worker/engine/methods/testing/moments.h"
#include "worker/engine/testing/matrix.h"

namespace quantry::engine {
namespace {

using Metric = BillmOptions::Metric;
using Domain = BillmOptions::Domain;
using test::Matrix;
using test::RandomMoments;

at::Tensor All(const at::Tensor& weight) { return at::ones_like(weight, at::kBool); }

std::set<int64_t> Columns(const at::Tensor& mask) {
  std::set<int64_t> columns;
  for (int64_t j = 0; j < mask.size(0); ++j) {
    if (mask[j].item<bool>()) columns.insert(j);
  }
  return columns;
}

BillmOptions Options(Metric metric, Domain domain = Domain::kSaliency) {
  BillmOptions options;
  options.metric = metric;
  options.domain = domain;
  return options;
}

// Distinct values a row has inside the mask.
size_t Levels(const at::Tensor& row, const at::Tensor& mask) {
  std::set<float> values;
  for (int64_t j = 0; j < row.size(0); ++j) {
    if (mask[j].item<bool>()) values.insert(row[j].item<float>());
  }
  return values.size();
}

// spec/baselines.md 4.4.
TEST(BillmGolden, ResidualOfOneRow) {
  const at::Tensor row = Matrix({0.9F, -0.2F, 0.1F, -0.4F}, 1);
  EXPECT_TRUE(BinarizeResidual(row, All(row), 1)
                  .values.allclose(Matrix({0.5F, -0.3F, 0.5F, -0.3F}, 1), 1e-6, 1e-7));
  EXPECT_TRUE(BinarizeResidual(row, All(row), 2)
                  .values.allclose(Matrix({0.75F, -0.05F, 0.25F, -0.55F}, 1), 1e-6, 1e-7));
}

const std::vector<float> kBlock = {0.1F,  -0.9F, 0.3F, -0.2F, 0.05F, 0.6F,
                                   -0.4F, 1.1F,  0.2F, 0.15F, -0.3F, -0.5F};

TEST(BillmGolden, BlockByMagnitude) {
  const at::Tensor weight = Matrix(kBlock, 2);
  BillmOptions options = Options(Metric::kMagnitude);
  options.salient_limit = 4;
  const BillmSplit split = SearchSplit(weight, {}, options);
  EXPECT_EQ(Columns(split.salient), (std::set<int64_t>{1, 5}));
  EXPECT_NEAR(split.column_error, 0.000104167, 1e-9);
  EXPECT_NEAR(split.threshold, 0.103, 1e-6);
  EXPECT_NEAR(split.split_error, 0.000520833, 1e-9);
  EXPECT_TRUE(BinarizeSplit(weight, split)
                  .allclose(Matrix({0.1F, -0.9F, 0.3F, -0.2F, 0.05F, 0.6F, -0.35F, 1.1F, 0.175F,
                                    0.175F, -0.35F, -0.5F},
                                   2),
                            1e-5, 1e-6));
}

TEST(BillmGolden, BlockBySecondMoments) {
  const at::Tensor weight = Matrix(kBlock, 2);
  BillmOptions options = Options(Metric::kHessian);
  options.salient_limit = 4;
  const at::Tensor diagonal = at::tensor({1.0F, 2.0F, 0.5F, 1.0F, 0.8F, 1.0F});
  const BillmSplit split = SearchSplit(weight, diagonal, options);
  EXPECT_EQ(Columns(split.salient), (std::set<int64_t>{1, 2, 5}));
  EXPECT_NEAR(split.threshold, 0.023025, 1e-6);
  EXPECT_TRUE(split.low.equal(Matrix({1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0}, 2).to(at::kBool)));
  EXPECT_TRUE(BinarizeSplit(weight, split)
                  .allclose(Matrix({0.1F, -0.933333F, 0.266667F, -0.2F, 0.05F, 0.533333F, -0.4F,
                                    1.271605F, 0.160494F, 0.15F, -0.3F, -0.367901F},
                                   2),
                            1e-5, 1e-6));
}

class BillmInvariants : public ::testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(21);
    weight_ = at::randn({24, 100});
    weight_.select(1, 7).mul_(6);
    weight_.select(1, 61).mul_(4);
    split_ = SearchSplit(weight_, at::rand({100}) + 0.5, Options(Metric::kHessian));
  }
  at::Tensor weight_;
  BillmSplit split_;
};

TEST_F(BillmInvariants, B1MasksPartitionTheBlock) {
  const at::Tensor salient = split_.salient.expand(weight_.sizes());
  const at::Tensor count =
      split_.low.to(at::kInt) + split_.high.to(at::kInt) + salient.to(at::kInt);
  EXPECT_TRUE(count.eq(1).all().item<bool>());
  EXPECT_EQ(split_.salient.sum().item<int64_t>(), split_.columns);
  EXPECT_GE(split_.columns, 1);
  EXPECT_LT(split_.columns, 50);
}

// Squares of such a saliency are beyond fp32, it itself is not.
TEST_F(BillmInvariants, AHugeSaliencyIsSplitAsASmallOne) {
  const at::Tensor diagonal = at::rand({100}) + 0.5;
  const BillmSplit small = SearchSplit(weight_, diagonal, Options(Metric::kHessian));
  const BillmSplit huge = SearchSplit(weight_, diagonal * 0x1p-45, Options(Metric::kHessian));
  EXPECT_EQ(huge.columns, small.columns);
  ASSERT_TRUE(huge.low.defined());
  EXPECT_TRUE(huge.salient.equal(small.salient));
  EXPECT_TRUE(huge.low.equal(small.low));
  EXPECT_TRUE(huge.high.equal(small.high));
  EXPECT_EQ(huge.threshold, std::ldexp(small.threshold, 90));
}

TEST_F(BillmInvariants, ASaliencyThatIsNotFiniteHasNoSplit) {
  const at::Tensor upper = at::eye(100) * 1e-30;  // its square is 0
  EXPECT_FALSE(SearchSplit(weight_, upper.diagonal(), Options(Metric::kHessian)).low.defined());
  EXPECT_TRUE(
      BinarizeColumns(weight_, upper, Options(Metric::kHessian)).values.isnan().all().item<bool>());
}

TEST_F(BillmInvariants, B2FewLevelsARow) {
  const at::Tensor values = BinarizeSplit(weight_, split_);
  for (int64_t i = 0; i < weight_.size(0); ++i) {
    EXPECT_LE(Levels(values[i], split_.low[i]), 2U);
    EXPECT_LE(Levels(values[i], split_.high[i]), 2U);
    EXPECT_LE(Levels(values[i], split_.salient), 4U);
  }
}

TEST_F(BillmInvariants, B3SignsAndEightParametersGiveTheValues) {
  at::Tensor again = at::zeros_like(weight_);
  for (const auto& [mask, order] : {std::pair(split_.low, 1), std::pair(split_.high, 1),
                                    std::pair(split_.salient.expand(weight_.sizes()), 2)}) {
    const Residual part = BinarizeResidual(weight_, mask, order);
    at::Tensor values = at::zeros_like(weight_);
    for (int o = 0; o < order; ++o) {
      values.addcmul_(mask.to(at::kFloat), part.means[o]).addcmul_(part.signs[o], part.gains[o]);
    }
    again += values;
  }
  EXPECT_TRUE(again.equal(BinarizeSplit(weight_, split_)));
}

TEST_F(BillmInvariants, B4TheSecondOrderHelpsEveryRow) {
  const auto error = [&](int order) {
    return (weight_ - BinarizeResidual(weight_, All(weight_), order).values).square().sum(1);
  };
  EXPECT_TRUE(error(2).le(error(1)).all().item<bool>());
}

TEST_F(BillmInvariants, B5TheChosenThresholdIsTheBest) {
  const at::Tensor x = weight_;
  const BillmSplit split = SearchSplit(x, {}, Options(Metric::kMagnitude));
  const at::Tensor salient = split.salient.expand(x.sizes());
  const at::Tensor size = x.abs().masked_fill(salient, 0.0);
  for (const double share : {0.10, 0.25, 0.37, 0.50, 0.77, 0.90}) {
    const double threshold = at::quantile(size.flatten(), share).item<double>();
    BillmSplit other = split;
    other.low = size.lt(threshold).logical_and(~salient);
    other.high = size.ge(threshold).logical_and(~salient);
    EXPECT_LE(split.split_error,
              (x - BinarizeSplit(x, other)).square().mean().item<double>() + 1e-7);
  }
}

TEST_F(BillmInvariants, B6WithoutCompensationBlocksAreIndependent) {
  const at::Tensor weight = at::randn({16, 256});
  const at::Tensor whole = BinarizeColumns(weight, {}, Options(Metric::kMagnitude)).values;
  for (const int64_t first : {0, 128}) {
    EXPECT_TRUE(BinarizeColumns(weight.narrow(1, first, 128), {}, Options(Metric::kMagnitude))
                    .values.equal(whole.narrow(1, first, 128)));
  }
}

TEST_F(BillmInvariants, B7PermutedColumnsGivePermutedValues) {
  const at::Tensor order = at::randperm(100);
  const BillmSplit split =
      SearchSplit(weight_.index_select(1, order), {}, Options(Metric::kMagnitude));
  const at::Tensor values = BinarizeSplit(weight_.index_select(1, order), split);
  const BillmSplit own = SearchSplit(weight_, {}, Options(Metric::kMagnitude));
  EXPECT_TRUE(values.allclose(BinarizeSplit(weight_, own).index_select(1, order), 1e-5, 1e-6));
}

TEST_F(BillmInvariants, B8ConstantRowsAndZeroRowsAreExact) {
  at::Tensor weight = weight_.clone();
  weight[3].fill_(0.25);
  weight[5].zero_();
  const at::Tensor values =
      BinarizeColumns(weight, RandomMoments(100).upper, Options(Metric::kHessian)).values;
  EXPECT_TRUE(values[3].allclose(weight[3], 1e-6, 0));
  EXPECT_TRUE(values[5].equal(weight[5]));
  EXPECT_TRUE(at::isfinite(values).all().item<bool>());
}

TEST_F(BillmInvariants, B9CompensationDoesNothingForWhiteInputs) {
  const at::Tensor weight = at::randn({16, 200});
  const at::Tensor with =
      BinarizeColumns(weight, at::eye(200) * 0.7, Options(Metric::kMagnitude)).values;
  EXPECT_TRUE(with.equal(BinarizeColumns(weight, {}, Options(Metric::kMagnitude)).values));
}

TEST_F(BillmInvariants, B10NarrowLastBlocksWork) {
  for (const int64_t columns : {1, 2, 44, 129, 172}) {
    const at::Tensor weight = at::randn({8, columns});
    const BinarizedColumns result =
        BinarizeColumns(weight, RandomMoments(columns).upper, Options(Metric::kHessian));
    EXPECT_TRUE(at::isfinite(result.values).all().item<bool>()) << columns;
  }
}

// The compensation is worth something on correlated inputs, and both forms of
// it move nothing but later blocks.
TEST_F(BillmInvariants, CompensationLowersTheOutputError) {
  const int64_t columns = 256;
  const at::Tensor weight = at::randn({32, columns});
  const at::Tensor upper = RandomMoments(columns).upper;
  // W - Q times the lower factor of H = (U^T U)^-1.
  const auto error = [&](const at::Tensor& values) {
    return at::linalg_solve_triangular(upper, weight - values, true, /*left=*/false)
        .square()
        .sum()
        .item<double>();
  };
  BillmOptions exact = Options(Metric::kMagnitude);
  exact.exact_compensation = true;
  const at::Tensor plain = BinarizeColumns(weight, {}, Options(Metric::kMagnitude)).values;
  const at::Tensor faithful = BinarizeColumns(weight, upper, Options(Metric::kMagnitude)).values;
  const at::Tensor better = BinarizeColumns(weight, upper, exact).values;
  EXPECT_LT(error(faithful), error(plain));
  EXPECT_LT(error(better), error(plain));
  EXPECT_TRUE(better.narrow(1, 0, 128).equal(plain.narrow(1, 0, 128)));
}

TEST(Billm, BitsDoNotDependOnTheSplit) {
  EXPECT_EQ(BillmBits(64, 172, 128), 2 * 64 * 172 + 172 + 2 * 8 * 16 * 64);
  EXPECT_NEAR(static_cast<double>(BillmBits(4096, 11008, 128)) / (4096.0 * 11008), 3.0 + 1.0 / 4096,
              1e-9);
}

}  // namespace
}  // namespace quantry::engine
