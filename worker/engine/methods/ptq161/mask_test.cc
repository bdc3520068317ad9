#include "worker/engine/methods/ptq161/mask.h"

#include <gtest/gtest.h>

#include <cmath>

#include "worker/engine/methods/ptq161/testing.h"
#include "worker/engine/model/shared_inputs.h"

namespace quantry::engine {
namespace {

std::vector<int32_t> Select(const std::vector<float>& statistic, const Ptq161Options& options) {
  const at::Tensor k = SelectSalient(options, at::tensor(statistic, at::kFloat));
  return {k.const_data_ptr<int32_t>(), k.const_data_ptr<int32_t>() + k.numel()};
}

TEST(Ptq161Mask, GoldenExample) {  // spec 11.2: two, not one
  EXPECT_EQ(Select({0.5, 3.0, 0.1, 2.0, 0.2}, {}), (std::vector<int32_t>{1, 3}));
}

struct MaskCase {
  const char* name;
  std::vector<float> statistic;
  Ptq161Options options;
  std::vector<int32_t> wanted;
};

Ptq161Options With(const std::function<void(Ptq161Options&)>& change) {
  Ptq161Options options;
  change(options);
  return options;
}

class MaskCaseTest : public ::testing::TestWithParam<MaskCase> {};

TEST_P(MaskCaseTest, Selects) {
  EXPECT_EQ(Select(GetParam().statistic, GetParam().options), GetParam().wanted);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, MaskCaseTest,
    ::testing::Values(
        MaskCase{"one_column", {4}, {}, {0}},  //
        MaskCase{"below_five_columns_keeps_one", {1, 2, 4, 3}, {}, {2}},
        MaskCase{"ties_at_the_threshold", {1, 2, 3, 2, 0, 2, 0, 0, 0, 0}, {}, {1, 2, 3, 5}},
        MaskCase{"silent_channels_are_no_reason_to_keep_all",
                 {0, 0, 0, 0, 0, 0, 0, 0, 9, 0},
                 {},
                 {0, 1, 8}},
        MaskCase{"exact_top_k",
                 {1, 2, 3, 2, 0, 2, 0, 0, 0, 0},
                 With([](auto& o) { o.exact_top_k = true; }),
                 {1, 2}},
        MaskCase{
            "promotion", {5, 4, 3, 2, 1}, With([](auto& o) { o.salient_multiple = 3; }), {0, 1, 2}},
        MaskCase{"promotion_ends_at_the_width",
                 {5, 4, 3, 2, 1},
                 With([](auto& o) { o.salient_multiple = 8; }),
                 {0, 1, 2, 3, 4}},
        MaskCase{"sensitivities_far_apart",
                 {1e9, 1e-9, 3e-9, 2e-9, 1e-10},
                 With([](auto& o) { o.statistic = Ptq161Options::Statistic::kSensitivity; }),
                 {0, 2}},
        MaskCase{"half", {5, 4, 3, 2}, With([](auto& o) { o.salient_ratio = 0.5; }), {0, 1, 2}},
        MaskCase{"no_mask", {5, 4, 3}, With([](auto& o) { o.mask = false; }), {}}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

// Spec 11.3, 1.
TEST(Ptq161Mask, Invariant1LoudestColumnsAndTheirNumber) {
  at::manual_seed(1);
  for (const int64_t columns : {1, 2, 4, 5, 64, 172, 353, 576}) {
    const at::Tensor statistic = at::rand({columns});
    const at::Tensor salient = SelectSalient({}, statistic).to(at::kLong);
    const auto share = static_cast<int64_t>(std::floor(0.2 * static_cast<double>(columns)));
    EXPECT_EQ(salient.numel(), share + 1);
    EXPECT_EQ(SalientCount({}, columns), share + 1);
    EXPECT_TRUE(salient.diff().gt(0).all().item<bool>());
    at::Tensor others = at::ones({columns}, at::kBool).index_fill_(0, salient, false);
    if (columns > share + 1) {
      EXPECT_GE(statistic.index_select(0, salient).min().item<float>(),
                statistic.masked_select(others).max().item<float>());
    }
    const at::Tensor order = at::randperm(columns);
    const at::Tensor moved = SelectSalient({}, statistic.index_select(0, order)).to(at::kLong);
    EXPECT_TRUE(at::equal(std::get<0>(order.index_select(0, moved).sort()), salient));
  }
}

// targets.md: salient columns of the authors' code by in_features.
TEST(Ptq161Mask, AuthorsCounts) {
  const std::map<int64_t, int64_t> wanted = {{64, 13},  {128, 26},  {172, 35},  {384, 77},
                                             {352, 71}, {576, 116}, {1536, 308}};
  for (const auto& [columns, count] : wanted) EXPECT_EQ(SalientCount({}, columns), count);
}

class SurveyTest : public ::testing::TestWithParam<const char*> {};

// Spec 11.3, 1 and 9: statistics of the full-precision stream, shared by
// linears with one input; targets are the plain block's outputs.
TEST_P(SurveyTest, Invariant9FullPrecisionStreamIsIndependent) {
  const test::BlockSetting setting(GetParam());
  BlockTask task = setting.Task();
  test::CountingSink sink;
  const BlockSurvey first = SurveyBlock(task, Ptq161Options::Statistic::kMax, sink);
  EXPECT_TRUE(at::equal(first.target_fp, first.target_q));  // block 0
  EXPECT_TRUE(at::equal(first.target_fp, setting.block.Forward(setting.x, setting.rope)));
  task.x_q = setting.x * 1.5;
  const BlockSurvey second = SurveyBlock(task, Ptq161Options::Statistic::kMax, sink);
  EXPECT_TRUE(at::equal(second.target_fp, first.target_fp));
  EXPECT_FALSE(at::equal(second.target_q, first.target_q));
  for (const auto& [source, statistic] : first.statistics) {
    EXPECT_TRUE(at::equal(second.statistics.at(source), statistic));
    EXPECT_EQ(InputSource(*setting.block.architecture, source), source);
  }
}

TEST_P(SurveyTest, MeasuresMaxMeanAndSquares) {
  const test::BlockSetting setting(GetParam());
  std::map<int, at::Tensor> inputs;
  setting.block.Forward(setting.x, setting.rope, [&](int index, const at::Tensor& x) {
    inputs[index] = x.reshape({-1, x.size(-1)}).abs();
    return setting.block.Apply(index, x);
  });
  test::CountingSink sink;
  const auto largest = SurveyBlock(setting.Task(), Ptq161Options::Statistic::kMax, sink);
  const auto mean = SurveyBlock(setting.Task(), Ptq161Options::Statistic::kMean, sink);
  const auto squares = SurveyBlock(setting.Task(), Ptq161Options::Statistic::kSensitivity, sink);
  for (size_t i = 0; i < setting.block.linears.size(); ++i) {
    const int source = InputSource(*setting.block.architecture, static_cast<int>(i));
    const at::Tensor& x = inputs.at(static_cast<int>(i));
    EXPECT_TRUE(at::allclose(largest.statistics.at(source), x.amax(0), 1e-5));
    EXPECT_TRUE(at::allclose(mean.statistics.at(source), x.mean(0), 1e-4));
    EXPECT_TRUE(at::allclose(squares.statistics.at(source), x.square().mean(0), 1e-4));
  }
}

// Error of one column, entry by entry, as a sign or in 4 bits: q/k/v are added up.
double SavedInColumn(const Block& block, int source, int64_t column) {
  double saved = 0;
  for (size_t i = 0; i < block.linears.size(); ++i) {
    if (InputSource(*block.architecture, static_cast<int>(i)) != source) continue;
    const at::Tensor& weight = block.linears[i].weight;
    for (int64_t row = 0; row < weight.size(0); ++row) {
      const at::Tensor w = weight[row].to(at::kDouble);
      const double mean = w.mean().item<double>();
      const double gain = w.abs().mean().item<double>();
      const double lo = std::min(0.0, w.min().item<double>());
      const double scale = (std::max(0.0, w.max().item<double>()) - lo) / 15;
      const auto value = w[column].item<double>();
      const double binary = mean + (value >= mean ? gain : -gain);
      const double zero = std::nearbyint(-lo / scale);
      const double code = std::clamp(std::nearbyint(value / scale) + zero, 0.0, 15.0);
      const double fine = (code - zero) * scale;
      saved += (binary - value) * (binary - value) - (fine - value) * (fine - value);
    }
  }
  return std::max(saved, 0.0);
}

// No column left out would have saved clearly more than one taken in.
TEST_P(SurveyTest, SensitivityTakesTheColumnsThatSaveMost) {
  const test::BlockSetting setting(GetParam());
  Ptq161Options options;
  options.statistic = Ptq161Options::Statistic::kSensitivity;
  test::CountingSink sink;
  const BlockSurvey survey = SurveyBlock(setting.Task(), options.statistic, sink);
  const std::vector<at::Tensor> salient = SelectColumns(setting.block, options, survey);
  for (const auto& [source, squares] : survey.statistics) {
    double least_taken = 1e300;
    double most_left = 0;
    const at::Tensor& taken = salient.at(source);
    for (int64_t column = 0; column < squares.size(0); ++column) {
      const double score =
          squares[column].item<double>() * SavedInColumn(setting.block, source, column);
      if (at::any(taken == column).item<bool>()) {
        least_taken = std::min(least_taken, score);
      } else {
        most_left = std::max(most_left, score);
      }
    }
    EXPECT_GE(least_taken, 0.99 * most_left) << setting.block.linears[source].name;
    EXPECT_EQ(taken.numel(), SalientCount(options, squares.size(0)));
  }
}

TEST_P(SurveyTest, SensitivityFallsBackOnTheInputs) {
  const test::BlockSetting setting(GetParam());
  Ptq161Options options;
  options.statistic = Ptq161Options::Statistic::kSensitivity;
  test::CountingSink sink;
  BlockSurvey survey = SurveyBlock(setting.Task(), options.statistic, sink);
  Block silent = setting.block;
  for (Linear& linear : silent.linears) linear.weight = at::zeros_like(linear.weight);
  const std::vector<at::Tensor> salient = SelectColumns(silent, options, survey);
  for (const auto& [source, squares] : survey.statistics) {
    EXPECT_TRUE(at::equal(salient.at(source), SelectSalient(options, squares)));
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, SurveyTest, ::testing::Values("llama", "qwen3", "opt"));

}  // namespace
}  // namespace quantry::engine
