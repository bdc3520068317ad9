#include "worker/engine/methods/awq/awq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "worker/engine/base/json_object.h"
#include "worker/engine/methods/awq/clip_search.h"
#include "worker/engine/methods/awq/fold.h"
#include "worker/engine/methods/awq/scale_search.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/catalog.h"
#include "worker/engine/methods/omniquant/omniquant.h"
#include "worker/engine/methods/rtn/rtn.h"
#include "worker/engine/methods/testing/setting.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/testing/counting_sink.h"
#include "worker/engine/testing/threads.h"

namespace quantry::engine {
namespace {

using test::RelativeError;
using test::Setting;

const GridSpec kAwqGrid = {2, -1, false};

class AwqTest : public ::testing::TestWithParam<const char*> {};

// T20: scaling changes nothing in full precision, whatever the norms are
// stored in.
TEST_P(AwqTest, T20_FoldingPreservesTheFunction) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Setting setting(GetParam());
    const BlockTask task = setting.Task(kAwqGrid, dtype);
    test::CountingSink counter;
    const auto inputs = CollectInputs(task, {0, 1, 2, 3, 4, 5, 6}, counter);
    Block folded = setting.block;
    for (const GroupScale& found : SearchScales(task, inputs, 4, task.x_fp.size(0), counter)) {
      // Not the winner, which may be 1 everywhere, but a scale that moves.
      const at::Tensor scale = at::linspace(0.5, 2.0, found.scale.numel());
      FoldScale(found.group, scale, task.dense_dtypes, folded);
      if (!found.group.previous_is_norm) continue;
      const at::Tensor weight = folded.FindNorm(found.group.previous)->weight;
      if (dtype == at::kFloat) continue;
      EXPECT_LT((weight - RoundToStorage(weight, dtype)).abs().max().item<double>(), 1e-12);
    }
    const at::Tensor wanted = setting.block.Forward(setting.x, setting.rope);
    EXPECT_LT(RelativeError(folded.Forward(setting.x, setting.rope), wanted), 2e-5)
        << c10::toString(dtype);
  }
}

// The winner's ratio, of `points` candidates, is that of the least loss.
void ExpectTheLeast(const GroupScale& found, int points) {
  const auto winner = static_cast<size_t>(std::lround(found.ratio * points));
  for (const double loss : found.losses) {
    EXPECT_LE(found.losses.at(winner), loss) << found.group.previous;
  }
}

// T20: ratio 0 (no scaling) is a candidate, so the winner is never worse; and
// the loss of ratio 0 is that of plain rounding, computed here the long way.
TEST_P(AwqTest, T20_WinnerIsNoWorseThanRounding) {
  const Setting setting(GetParam());
  const BlockTask task = setting.Task(kAwqGrid);
  test::CountingSink counter;
  const auto inputs = CollectInputs(task, {0, 1, 2, 3, 4, 5, 6}, counter);
  for (const GroupScale& found : SearchScales(task, inputs, 5, task.x_fp.size(0), counter)) {
    ExpectTheLeast(found, 5);
    if (!UsesGram(found.group, {})) continue;
    const int index = found.group.linears.at(0);
    const at::Tensor x = CaptureInputs(setting.block, setting.rope, setting.x)
                             .at(InputSource(setting.checkpoint->architecture(), index));
    const at::Tensor& weight = setting.block.linears[index].weight;
    const at::Tensor error = FakeQuantize(weight, kAwqGrid, at::kHalf) - weight;
    const double loss = at::matmul(x, error.t()).square().mean().item<double>();
    EXPECT_NEAR(found.losses.at(0) / loss, 1.0, 1e-4) << found.group.previous;
  }
}

// Mean squared error of a group's outputs on x [windows, length, in], its
// linears quantized with columns scaled by c and everything else as it was.
double TrialLoss(const Setting& setting, const SmoothingGroup& group, const at::Tensor& x,
                 const at::Tensor& c) {
  Block trial = setting.block;
  for (const int index : group.linears) {
    at::Tensor& weight = trial.linears[index].weight;
    weight = FakeQuantize(weight * c, kAwqGrid, at::kHalf) / c;
  }
  const auto outputs = [&](const Block& block) {
    if (group.compared == ComparedModule::kAttention) return block.Attention(x, setting.rope);
    if (group.compared == ComparedModule::kMlp) return block.Mlp(x);
    std::vector<at::Tensor> parts;
    for (const int index : group.linears) parts.push_back(block.Apply(index, x));
    return at::cat(parts, -1);
  };
  return (outputs(trial) - outputs(setting.block)).square().mean(at::kDouble).item<double>();
}

// T20: the scale that comes back is the candidate with the smallest loss, all
// of them computed here the long way.
TEST_P(AwqTest, T20_WinnerHasTheSmallestLossOfAll) {
  constexpr int kPoints = 5;
  const Setting setting(GetParam());
  const BlockTask task = setting.Task(kAwqGrid);
  test::CountingSink counter;
  const auto inputs = CollectInputs(task, {0, 1, 2, 3, 4, 5, 6}, counter);
  const auto captured = CaptureInputs(setting.block, setting.rope, setting.x);
  for (const GroupScale& found : SearchScales(task, inputs, kPoints, task.x_fp.size(0), counter)) {
    const int first = found.group.linears.at(0);
    const at::Tensor x = captured.at(InputSource(setting.checkpoint->architecture(), first));
    const at::Tensor mean = x.abs().flatten(0, -2).mean(0);
    std::vector<double> losses;
    std::vector<at::Tensor> scales;
    for (int n = 0; n < kPoints; ++n) {
      const at::Tensor c = mean.pow(static_cast<double>(n) / kPoints).clamp_min(1e-4);
      scales.push_back(c / (c.max() * c.min()).sqrt());
      losses.push_back(TrialLoss(setting, found.group, x, scales.back()));
      EXPECT_NEAR(found.losses.at(n) / losses.back(), 1.0, 2e-3) << found.group.previous << n;
    }
    // Two candidates as good as each other may change places.
    const auto winner = static_cast<size_t>(std::lround(found.ratio * kPoints));
    const double best = *std::min_element(losses.begin(), losses.end());
    EXPECT_LE(losses.at(winner), best * (1 + 4e-3)) << found.group.previous;
    EXPECT_LT(RelativeError(found.scale, scales.at(winner)), 1e-4) << found.group.previous;
  }
}

// Outputs are compared on some windows only where that is asked for; the scale itself and
// Gram matrices come from all.
TEST_P(AwqTest, ComparesWindowsSpreadEvenly) {
  const Setting setting(GetParam());
  const BlockTask task = setting.Task(kAwqGrid);
  test::CountingSink counter;
  const auto inputs = CollectInputs(task, {0, 1, 2, 3, 4, 5, 6}, counter);
  const at::Tensor chosen = at::tensor({0, 13, 26}, at::kLong);  // three of 40
  const auto all = CaptureInputs(setting.block, setting.rope, setting.x);
  const auto some = CaptureInputs(setting.block, setting.rope, setting.x.index_select(0, chosen));
  for (const GroupScale& found : SearchScales(task, inputs, 3, 3, counter)) {
    const int source = InputSource(setting.checkpoint->architecture(), found.group.linears.at(0));
    const at::Tensor mean = all.at(source).abs().flatten(0, -2).mean(0);
    const at::Tensor& x = UsesGram(found.group, {}) ? all.at(source) : some.at(source);
    for (int n = 0; n < 3; ++n) {
      const double loss = TrialLoss(setting, found.group, x, CandidateScale(mean, n / 3.0));
      EXPECT_NEAR(found.losses.at(n) / loss, 1.0, 2e-3) << found.group.previous << n;
    }
  }
}

TEST_P(AwqTest, TakesExactlyTheStepsItPromises) {
  const Setting setting(GetParam());
  for (const AwqOptions& options : {AwqOptions{}, AwqOptions{false, true, 20},
                                    AwqOptions{true, false, 3}, AwqOptions{false, false, 20}}) {
    const Awq awq(options);
    test::CountingSink counter;
    awq.Quantize(setting.Task(kAwqGrid), counter);
    EXPECT_EQ(counter.steps(), awq.Steps(setting.checkpoint->architecture(),
                                         setting.checkpoint->config(), {40, 16}));
  }
}

TEST_P(AwqTest, SameTaskSameBytes) {
  const Setting setting(GetParam());
  test::CountingSink counter;
  const auto first = Awq({}).Quantize(setting.Task({3, -1, true}), counter);
  const auto second = Awq({}).Quantize(setting.Task({3, -1, true}), counter);
  for (size_t i = 0; i < first.block.linears.size(); ++i) {
    EXPECT_TRUE(at::equal(first.block.linears[i].codes, second.block.linears[i].codes));
    EXPECT_TRUE(at::equal(first.block.linears[i].scales, second.block.linears[i].scales));
  }
  EXPECT_EQ(first.metrics, second.metrics);
}

TEST_P(AwqTest, BeatsRoundingOnSkewedInputs) {
  const Setting setting(GetParam());
  test::CountingSink counter;
  const BlockTask task = setting.Task(kAwqGrid);
  const at::Tensor wanted = setting.block.Forward(setting.x, setting.rope);
  const auto loss = [&](const Method& method) {
    const Block block = Rebuild(setting.block, method.Quantize(task, counter).block);
    return RelativeError(block.Forward(setting.x, setting.rope), wanted);
  };
  EXPECT_LT(loss(Awq({})), loss(Rtn()));
}

INSTANTIATE_TEST_SUITE_P(Architectures, AwqTest,
                         ::testing::Values("llama", "mistral", "qwen2", "qwen3", "opt"),
                         [](const auto& param_info) { return std::string(param_info.param); });

// T20, T21 with quantized activations: ratio 0 and p = 1 are candidates, so
// neither search is worse than rounding; and the loss is that of the linear on
// quantized inputs, computed here the long way.
TEST_P(AwqTest, SearchesWithQuantizedActivations) {
  const Setting setting(GetParam());
  BlockTask task = setting.Task(kAwqGrid);
  task.activations.bits = 3;
  test::CountingSink counter;
  const auto inputs = CollectInputs(task, {}, counter);
  for (const GroupScale& found : SearchScales(task, inputs, 5, task.x_fp.size(0), counter)) {
    ExpectTheLeast(found, 5);
    if (found.group.compared != ComparedModule::kLinear || found.group.linears.size() != 1)
      continue;
    const int index = found.group.linears.at(0);
    const at::Tensor x = CaptureInputs(setting.block, setting.rope, setting.x)
                             .at(InputSource(setting.checkpoint->architecture(), index));
    const at::Tensor& weight = setting.block.linears[index].weight;
    const at::Tensor got =
        at::matmul(FakeQuantizeActivations(x, 3), FakeQuantize(weight, kAwqGrid, at::kHalf).t());
    const double loss = (got - at::matmul(x, weight.t())).square().mean().item<double>();
    EXPECT_NEAR(found.losses.at(0) / loss, 1.0, 1e-4) << found.group.previous;
  }
}

TEST_P(AwqTest, ReportsTheSameStepsWithQuantizedActivations) {
  const Setting setting(GetParam());
  BlockTask task = setting.Task(kAwqGrid);
  task.activations.bits = 4;
  test::CountingSink counter;
  const Awq awq({true, true, 3});
  awq.Quantize(task, counter);
  EXPECT_EQ(counter.steps(),
            awq.Steps(setting.checkpoint->architecture(), setting.checkpoint->config(), {40, 16}));
}

// Of o_proj and down_proj, whose groups are compared at the linear itself; one
// batch of windows has one worker.
TEST(Awq, CountsItsGramMatrices) {
  const Setting setting("llama");
  const Architecture& architecture = setting.checkpoint->architecture();
  const ModelConfig& config = setting.checkpoint->config();
  const StreamShape stream{2, 16};
  const int64_t heads = config.num_heads * config.head_dim;
  const int64_t wide = config.intermediate_size;
  const bool scales_attention = config.num_kv_heads == config.num_heads;
  const int64_t bytes = (wide * wide + (scales_attention ? heads * heads : 0)) * 4;
  const auto working = [&](bool scales, bool clip) {
    return Awq({scales, clip, 3}).WorkingBytes(architecture, config, stream, at::kCPU);
  };
  EXPECT_EQ(working(true, false), bytes);
  EXPECT_EQ(working(false, false), 0);
  EXPECT_GT(working(false, true), 0);
  EXPECT_EQ(working(true, true), bytes + working(false, true));
}

// Four batches of windows have up to four workers, each with matrices of its own, then with trial
// weights beside what the matrices sum up to.
TEST(Awq, CountsWhatEachWorkerHolds) {
  for (const int wide : {64, 512}) {
    const Setting setting("llama", {{"intermediate_size", wide}});
    const auto bytes = [&](int count, const at::Device& device) {
      const test::Threads threads(count);
      return Awq({true, false, 3})
          .WorkingBytes(setting.checkpoint->architecture(), setting.checkpoint->config(), {256, 16},
                        device);
    };
    const int64_t grams = bytes(1, at::kCPU);
    const int64_t trial = int64_t{2} * wide * setting.checkpoint->config().hidden_size;  // gate, up
    EXPECT_EQ(grams, int64_t{4} * wide * wide);
    EXPECT_EQ(bytes(4, at::kCPU), std::max(4 * grams, grams + 3 * 2 * 4 * trial)) << wide;
    EXPECT_EQ(bytes(8, at::kCPU), bytes(4, at::kCPU));
    EXPECT_EQ(bytes(4, at::kCUDA), grams);
  }
}

TEST(Clip, CountsOnePieceAThread) {
  const auto bytes = [](int count, int64_t group_size, const at::Device& device) {
    const test::Threads threads(count);
    return ClipSearchBytes({128, 64}, 512, group_size, device);  // four pieces of 32 rows
  };
  const int64_t one = bytes(1, 16, at::kCPU);
  EXPECT_GT(one, 4 * 32 * 512 * 4);  // outputs in fp32
  EXPECT_EQ(bytes(3, 16, at::kCPU), 3 * one);
  EXPECT_EQ(bytes(8, 16, at::kCPU), 4 * one);
  EXPECT_EQ(bytes(3, 16, at::kCUDA), 4 * one) << "one piece of all rows";
  EXPECT_LT(bytes(1, -1, at::kCPU), one);
}

// T22: with grouped-query attention v_proj is narrower than o_proj's input.
TEST(Awq, T22_SkipsAttentionOutputWithGroupedQueries) {
  const auto previous = [](int kv_heads) {
    const Setting setting("llama", {{"num_key_value_heads", kv_heads}});
    std::vector<std::string> names;
    for (const auto& group :
         UsableSmoothingGroups(setting.checkpoint->architecture(), setting.checkpoint->config())) {
      names.push_back(group.previous);
    }
    return names;
  };
  const Setting probe("llama");
  const auto all = static_cast<int>(probe.checkpoint->config().num_heads);
  const auto has_v = [](const std::vector<std::string>& names) {
    return std::find(names.begin(), names.end(), "self_attn.v_proj") != names.end();
  };
  EXPECT_TRUE(has_v(previous(all)));
  EXPECT_FALSE(has_v(previous(all / 2)));
}

// T21: p = 1 is a candidate, and query and key are left alone.
TEST(Clip, T21_IsNoWorseThanUnclippedInEveryGroup) {
  at::manual_seed(3);
  const at::Tensor weight = at::randn({50, 64}).pow(3);
  const at::Tensor samples = at::randn({300, 64});
  for (const GridSpec& grid : {GridSpec{2, 16, false}, GridSpec{3, -1, true}}) {
    const ClippedWeight found = SearchClip(weight, {samples, {}}, grid, at::kHalf);
    const int64_t group = grid.GroupSizeFor(64);
    const at::Tensor error =
        (FakeQuantize(weight, grid, at::kHalf) - weight).view({50, 64 / group, group});
    const at::Tensor plain =
        at::einsum("tgi,ogi->tog", {samples.view({300, 64 / group, group}), error})
            .square()
            .mean(0);
    EXPECT_TRUE((found.errors <= plain * (1 + 1e-4)).all().item<bool>());
    EXPECT_GT(found.levels.ne(0).sum().item<int64_t>(), 0);
    EXPECT_LE((found.weight.abs() - weight.abs()).max().item<double>(), 0.0);
  }
  EXPECT_FALSE(MayClip(LinearRole::kQuery));
  EXPECT_FALSE(MayClip(LinearRole::kKey));
  EXPECT_TRUE(MayClip(LinearRole::kDown));
}

// T21: weights clamped to a share of their range (v1) and the range's factors
// beside untouched weights (v2) give the same grid where min < 0 < max.
TEST(Clip, T21_ClampsAndFactorsGiveTheSameGrid) {
  at::manual_seed(3);
  const at::Tensor weight = at::randn({50, 64}).pow(3);
  const at::Tensor samples = at::randn({300, 64});
  for (const GridSpec& grid : {GridSpec{2, 16, false}, GridSpec{3, 32, false}}) {
    const ClippedWeight found = SearchClip(weight, {samples, {}}, grid, at::kHalf);
    EXPECT_GE(std::get<0>(at::_unique(found.levels)).numel(), 3);
    const at::Tensor share = 1.0 - found.levels.to(at::kFloat) / 20;
    const GroupGrid clamped = MinMaxGrid(found.weight, grid, at::kHalf);
    const GroupGrid factors = ClippedGrid(weight, {share, share}, grid, at::kHalf);
    EXPECT_TRUE(clamped.scales.equal(factors.scales));
    EXPECT_TRUE(clamped.zeros.equal(factors.zeros));
  }
}

TEST(Clip, CountsWhatQuantizedInputsAdd) {
  at::manual_seed(4);
  const at::Tensor weight = at::randn({6, 32}).pow(3);
  const at::Tensor x = at::randn({50, 32});
  const GridSpec grid = {3, 16, false};
  const ClippedWeight found = SearchClip(weight, {x, {4}}, grid, at::kHalf);
  const auto partial = [](const at::Tensor& inputs, const at::Tensor& values) {
    return at::einsum("tgi,ogi->tog", {inputs.view({50, 2, 16}), values.reshape({6, 2, 16})});
  };
  const at::Tensor got =
      partial(FakeQuantizeActivations(x, 4), FakeQuantize(found.weight, grid, at::kHalf));
  const at::Tensor errors = (got - partial(x, weight)).square().mean(0);
  EXPECT_TRUE(at::allclose(found.errors, errors, 1e-4, 1e-6));
}

TEST(Clip, T21_LeavesQueryAndKeyUntouched) {
  const Setting setting("llama");
  test::CountingSink counter;
  const auto result = Awq({false, true, 20}).Quantize(setting.Task(kAwqGrid), counter);
  for (const char* name : {"self_attn.q_proj", "self_attn.k_proj"}) {
    const int index = setting.block.LinearIndex(name);
    const auto plain =
        QuantizeNearest(name, setting.block.linears[index].weight, {}, kAwqGrid, at::kHalf);
    EXPECT_TRUE(at::equal(result.block.linears[index].codes, plain.codes)) << name;
  }
}

TEST(Batches, CoverTheStreamOnceWithAnyNumberOfWorkers) {
  for (const int workers : {1, 2, 5}) {
    std::vector<std::atomic<int>> seen(131);
    ForEachBatch({131, 256}, workers, [&](int, const Batch& batch) {
      for (int64_t i = batch.first; i < batch.last; ++i) ++seen[i];
    });
    for (const auto& count : seen) EXPECT_EQ(count, 1);
  }
  EXPECT_EQ(Batches({131, 256}), 33);
  EXPECT_EQ(Batches({3, 100000}), 3);
  EXPECT_EQ(Batches({}), 0);
}

TEST(Catalog, DescribesEveryMethodAndReadsItsOptions) {
  const nlohmann::json methods = MethodsJson().at("methods");
  ASSERT_EQ(methods.size(), Methods().size());
  EXPECT_EQ(FindMethod("nonsense"), nullptr);
  const nlohmann::json options = {{"grid", {{"bits", 3}, {"symmetric", true}}},
                                  {"scale_grid_points", 5}};
  JsonObject object(options, "awq");
  const GridSpec grid = ParseGrid(object);
  EXPECT_EQ(grid.bits, 3);
  EXPECT_EQ(grid.group_size, 128);
  EXPECT_TRUE(grid.symmetric);
  EXPECT_NE(FindMethod("awq")->create(object), nullptr);
  object.Finish();
}

// What the server refuses contradictions by is what the engine runs.
TEST(Catalog, RecipesFixWhatTheyParseTo) {
  int recipes = 0;
  for (const MethodRow& row : Methods()) {
    for (const RecipeRow& recipe : row.recipes) {
      ++recipes;
      nlohmann::json options = {{"recipe", recipe.name}};
      if (row.name == "restore") options = {{"first_pass", options}};
      JsonObject object(options, row.name);
      const GridSpec grid = row.parse_grid(object);
      if (recipe.bits != 0) {
        EXPECT_EQ(grid.bits, recipe.bits) << recipe.name;
      }
      if (recipe.group_size != 0) {
        EXPECT_EQ(grid.group_size, recipe.group_size) << recipe.name;
      }
      if (recipe.activation_bits != 0) {
        EXPECT_EQ(row.default_activations(object).bits, recipe.activation_bits) << recipe.name;
      }
      const std::unique_ptr<Method> method = row.create(object);
      ASSERT_NE(method, nullptr) << recipe.name;
      if (recipe.calibration.windows != 0) {
        EXPECT_EQ(method->DefaultCalibration().windows, recipe.calibration.windows) << recipe.name;
        EXPECT_EQ(method->DefaultCalibration().length, recipe.calibration.length) << recipe.name;
      }
    }
  }
  EXPECT_GE(recipes, 11);
  const nlohmann::json tesseraq = MethodsJson().at("methods").at(2);
  EXPECT_EQ(tesseraq.at("recipes").at(0).dump(),
            R"({"activation_bits":0,"bits":2,"group_size":128,"name":"tesseraq-w2g128",)"
            R"("samples":512,"sequence_length":2048})");
}

}  // namespace
}  // namespace quantry::engine
