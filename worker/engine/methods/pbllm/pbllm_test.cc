#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "worker/engine/methods/pbllm/partial.h"
#include "worker/engine/methods/testing/moments.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/testing/matrix.h"

namespace quantry::engine {
namespace {

using test::Matrix;
using test::Moments;
using test::RandomMoments;

PbllmOptions Options(double ratio, PbllmOptions::Metric metric, bool count_norm = false) {
  PbllmOptions options;
  options.salient_ratio = ratio;
  options.metric = metric;
  options.count_norm = count_norm;
  return options;
}

constexpr auto kMagnitude = PbllmOptions::Metric::kMagnitude;
constexpr auto kHessian = PbllmOptions::Metric::kHessian;

double OutputError(const at::Tensor& error, const Moments& moments) {
  const at::Tensor e = error.to(at::kDouble);
  return at::mm(at::mm(e, moments.hessian), e.t()).diagonal().sum().item<double>();
}

// spec/baselines.md 5.2.
const std::vector<float> kWeight = {0.9F, -0.2F, 0.1F, -0.4F, 0.3F, -0.8F, 0.2F, 0.1F};

TEST(PbllmGolden, Faithful) {
  const PartialBinary result =
      BinarizePartially(Matrix(kWeight, 2), {}, at::kFloat, Options(0.5, kMagnitude));
  EXPECT_TRUE(result.low.equal(Matrix({0, 1, 1, 0, 1, 0, 1, 1}, 2).to(at::kBool)));
  EXPECT_TRUE(result.scales.allclose(Matrix({0.00509804F, 0.00431373F}, 2), 1e-5, 1e-8));
  EXPECT_TRUE(result.zeros.equal(Matrix({78, 185}, 2)));
  EXPECT_TRUE(result.low_mean.allclose(Matrix({-0.025F, 0.15F}, 2), 1e-5, 1e-7));
  EXPECT_TRUE(result.low_gain.allclose(Matrix({0.0875F, 0.1F}, 2), 1e-5, 1e-7));
  EXPECT_TRUE(result.values.allclose(
      Matrix({0.902353F, -0.1125F, 0.0625F, -0.397647F, 0.25F, -0.798039F, 0.25F, 0.05F}, 2), 1e-5,
      1e-6));
}

TEST(PbllmGolden, CorrectedMeans) {
  const PartialBinary result =
      BinarizePartially(Matrix(kWeight, 2), {}, at::kFloat, Options(0.5, kMagnitude, true));
  EXPECT_TRUE(result.low_mean.allclose(Matrix({-0.05F, 0.2F}, 2), 1e-5, 1e-7));
  EXPECT_TRUE(result.low_gain.allclose(Matrix({0.15F, 0.0666667F}, 2), 1e-5, 1e-7));
  EXPECT_TRUE(result.values.allclose(
      Matrix({0.902353F, -0.2F, 0.1F, -0.397647F, 0.266667F, -0.798039F, 0.266667F, 0.133333F}, 2),
      1e-5, 1e-6));
}

class PbllmInvariants : public ::testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(31);
    weight_ = at::randn({20, 150});
    moments_ = RandomMoments(150);
  }
  PartialBinary Run(double ratio, PbllmOptions::Metric metric = kHessian,
                    bool count_norm = false) const {
    return BinarizePartially(weight_, moments_.upper, at::kHalf,
                             Options(ratio, metric, count_norm));
  }
  at::Tensor weight_;
  Moments moments_;
};

TEST_F(PbllmInvariants, P1SalientEntriesHaveTheLargerSaliency) {
  const PartialBinary result = Run(0.1);
  const at::Tensor saliency = weight_.square() / moments_.upper.diagonal().square();
  EXPECT_GT(saliency.masked_select(~result.low).min().item<float>(),
            saliency.masked_select(result.low).max().item<float>());
}

TEST_F(PbllmInvariants, P2LowCountIsOneMoreThanTheShare) {
  for (const double ratio : {0.05, 0.1, 0.3, 0.5}) {
    EXPECT_EQ(Run(ratio).low.sum().item<int64_t>(),
              static_cast<int64_t>(20 * 150 * (1 - ratio)) + 1);
    EXPECT_EQ(Run(ratio).low.sum().item<int64_t>(), PbllmLowCount(20 * 150, ratio));
  }
}

TEST_F(PbllmInvariants, P3SalientErrorIsHalfAStepAtMost) {
  const PartialBinary result = BinarizePartially(weight_, {}, at::kHalf, Options(0.2, kMagnitude));
  const at::Tensor error = (result.values - weight_).abs().masked_fill(result.low, 0.0);
  // A rounded scale may leave the range's ends one more fraction of a step.
  EXPECT_TRUE(error.le(result.scales * 0.57).all().item<bool>());
  const PartialBinary exact = BinarizePartially(weight_, {}, at::kFloat, Options(0.2, kMagnitude));
  const at::Tensor exact_error = (exact.values - weight_).abs().masked_fill(exact.low, 0.0);
  EXPECT_TRUE(exact_error.le(exact.scales * 0.501).all().item<bool>());
}

TEST_F(PbllmInvariants, P4BinarizedEntriesTakeTwoValuesARow) {
  const PartialBinary result = Run(0.1);
  for (int64_t i = 0; i < weight_.size(0); ++i) {
    std::set<float> values;
    for (int64_t j = 0; j < weight_.size(1); ++j) {
      if (result.low[i][j].item<bool>()) values.insert(result.values[i][j].item<float>());
    }
    EXPECT_LE(values.size(), 2U);
  }
}

// G1: sum ((w - q) / U_jj)^2 = tr(E H E^T), the best test of the update.
TEST_F(PbllmInvariants, P5LossIsTheOutputError) {
  for (const double ratio : {0.1, 0.5}) {
    const PartialBinary result = Run(ratio);
    const double wanted = OutputError(result.values - weight_, moments_);
    EXPECT_NEAR(2 * result.loss, wanted, 1e-3 * wanted);
  }
}

TEST_F(PbllmInvariants, P6OneBinarizedWeightIsNearlyEightBits) {
  const PartialBinary result = Run(1.0);
  EXPECT_EQ(result.low.sum().item<int64_t>(), 1);
  EXPECT_LT(OutputError(result.values - weight_, moments_),
            1e-3 * OutputError(Run(0.1).values - weight_, moments_));
}

TEST_F(PbllmInvariants, P7MoreSalientEntriesLessError) {
  double last = OutputError(Run(0.01).values - weight_, moments_);
  for (const double ratio : {0.1, 0.3, 0.6}) {
    const double error = OutputError(Run(ratio).values - weight_, moments_);
    EXPECT_LT(error, last);
    last = error;
  }
}

TEST_F(PbllmInvariants, P8CountedMeansAreTheBestForTheirSigns) {
  const PartialBinary best =
      BinarizePartially(weight_, {}, at::kFloat, Options(0.2, kMagnitude, true));
  const at::Tensor inside = best.low.to(at::kFloat);
  const at::Tensor signs = weight_.ge(best.low_mean).to(at::kFloat) * 2 - 1;
  const auto error = [&](double scale) {
    const at::Tensor e = (weight_ - best.low_mean - signs * best.low_gain * scale) * inside;
    return e.square().sum(1);
  };
  EXPECT_TRUE(error(1.0).le(error(0.99)).all().item<bool>());
  EXPECT_TRUE(error(1.0).le(error(1.01)).all().item<bool>());
}

TEST_F(PbllmInvariants, P9AnEntryAtTheMeanIsPlus) {
  const at::Tensor weight = Matrix({1, 1, 1, 1, 0.5F, -0.5F, 0, 9}, 2);
  const PartialBinary result =
      BinarizePartially(weight, {}, at::kFloat, Options(0.3, kMagnitude, true));
  ASSERT_TRUE(result.low[1][2].item<bool>());
  EXPECT_FLOAT_EQ(result.values[1][2].item<float>(),
                  (result.low_mean[1] + result.low_gain[1]).item<float>());
}

TEST_F(PbllmInvariants, P10BitsFollowTheFormula) {
  const int64_t n = 64, m = 172;
  const auto low = static_cast<int64_t>(n * m * 0.9) + 1;
  EXPECT_EQ(PbllmBits(n, m, 0.1), low + 8 * (n * m - low) + n * m + n * 56);
  EXPECT_NEAR(static_cast<double>(PbllmBits(4096, 4096, 0.1)) / (4096.0 * 4096), 2.7, 0.02);
}

TEST_F(PbllmInvariants, DoesNotDependOnTheBlockSize) {
  PbllmOptions options = Options(0.1, kHessian);
  const at::Tensor whole = BinarizePartially(weight_, moments_.upper, at::kHalf, options).values;
  options.block_size = 7;
  EXPECT_TRUE(BinarizePartially(weight_, moments_.upper, at::kHalf, options)
                  .values.allclose(whole, 1e-4, 1e-4));
}

}  // namespace
}  // namespace quantry::engine
