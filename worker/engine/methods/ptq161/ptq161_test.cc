#include "worker/engine/methods/ptq161/ptq161.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <tuple>

#include "worker/engine/base/json_object.h"
#include "worker/engine/base/non_finite.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/ptq161/block_loss.h"
#include "worker/engine/methods/ptq161/learned_rounding.h"
#include "worker/engine/methods/ptq161/mask.h"
#include "worker/engine/methods/ptq161/mixed_linear.h"
#include "worker/engine/methods/ptq161/parse.h"
#include "worker/engine/methods/ptq161/testing.h"
#include "worker/engine/methods/ptq161/train.h"
#include "worker/engine/methods/working_bytes.h"
#include "worker/engine/model/shared_inputs.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/threads.h"

namespace quantry::engine {
namespace {

using test::BlockSetting;
using test::CountingSink;

Ptq161Options Quick(int epochs = 4) {
  Ptq161Options options;
  options.epochs = epochs;
  return options;
}

MethodResult RunMethod(const BlockTask& task, const Ptq161Options& options) {
  CountingSink sink;
  return Ptq161(options).Quantize(task, sink);
}

// Mean squared error of the quantized block against the plain one.
double Loss(const BlockSetting& setting, const QuantizedBlock& block) {
  const at::Tensor wanted = setting.block.Forward(setting.x, setting.rope);
  const at::Tensor got = Rebuild(setting.block, block).Forward(setting.x, setting.rope);
  return (got - wanted).square().mean().item<double>();
}

void ExpectSame(const MixedBinaryWeight& a, const MixedBinaryWeight& b) {
  EXPECT_TRUE(at::equal(a.salient, b.salient));
  EXPECT_TRUE(at::equal(a.codes, b.codes));
  EXPECT_TRUE(at::equal(a.zeros, b.zeros));
  EXPECT_TRUE(at::equal(a.scales, b.scales));
  EXPECT_TRUE(at::equal(a.signs, b.signs));
}

// A block's linears before their gains are trained, and what trains them.
struct UnderTraining {
  UnderTraining(const BlockTask& task, const Ptq161Options& with)
      : options(with),
        survey(SurveyBlock(task, with.statistic, sink)),
        buffer(1 << 14, at::kCPU),
        linears(
            MakeMixedLinears(task.block, with, SelectColumns(task.block, with, survey), buffer)) {}

  TrainingReport Train(const BlockTask& task) {
    return TrainBlock(task, options, survey, linears, buffer, sink);
  }

  Ptq161Options options;
  CountingSink sink;
  BlockSurvey survey;
  ParameterBuffer buffer;
  std::vector<MixedLinear> linears;
};

class Ptq161Test : public ::testing::TestWithParam<const char*> {};

TEST_P(Ptq161Test, TakesExactlyTheStepsItPromises) {
  const BlockSetting setting(GetParam());
  Ptq161Options stopping = Quick(5);
  stopping.stop_improvement = 0.9;
  for (const Ptq161Options& options : {Quick(2), Quick(0), stopping}) {
    CountingSink sink;
    const MethodResult result = Ptq161(options).Quantize(setting.Task(), sink);
    EXPECT_EQ(sink.steps(), Ptq161(options).Steps(setting.checkpoint->architecture(),
                                                  setting.checkpoint->config(), {12, 16}));
    if (options.epochs == 0) continue;
    const double epochs = options.stop_improvement > 0 ? 2 : options.epochs;
    EXPECT_EQ(result.metrics.at("train_epochs"), epochs);
  }
}

// Spec 11.3, 1: {q, k, v} and {gate, up} have one mask.
bool ReadTheSame(const std::string& a, const std::string& b) {
  const std::vector<std::vector<std::string>> groups = {{"q_proj", "k_proj", "v_proj"},
                                                        {"gate_proj", "up_proj"}};
  const auto among = [](const std::vector<std::string>& group, const std::string& name) {
    return std::any_of(group.begin(), group.end(),
                       [&](const std::string& end) { return name.ends_with(end); });
  };
  return std::any_of(groups.begin(), groups.end(), [&](const std::vector<std::string>& group) {
    return among(group, a) && among(group, b);
  });
}

TEST_P(Ptq161Test, Invariant1SharedInputsShareTheMask) {
  const BlockSetting setting(GetParam());
  const MethodResult result = RunMethod(setting.Task(), Quick(0));
  for (size_t i = 0; i < result.block.linears.size(); ++i) {
    const std::string name = result.block.linears[i].name;
    for (size_t j = 0; j < i; ++j) {
      const std::string other = result.block.linears[j].name;
      EXPECT_EQ(
          at::equal(result.block.linears[i].mixed->salient, result.block.linears[j].mixed->salient),
          ReadTheSame(name, other))
          << name << ", " << other;
    }
  }
}

// What training leaves alone, bit for bit.
std::vector<at::Tensor> Frozen(const MixedLinear& linear) {
  return {linear.mean,        linear.signs8,     linear.codes,   linear.fixed,
          linear.grid.scales, linear.grid.zeros, linear.salient, linear.gain_unit};
}

// Spec 11.3, 4: mu, mask, signs and 4-bit columns are those of before; r2 of a
// salient column is 1, as its weight is its code's.
TEST_P(Ptq161Test, Invariant4TrainingLeavesAllButGainsAlone) {
  const BlockSetting setting(GetParam());
  const BlockTask task = setting.Task();
  UnderTraining training(task, Quick());
  std::vector<std::vector<at::Tensor>> before;
  for (const MixedLinear& linear : training.linears) {
    EXPECT_GT(linear.mean.abs().max().item<double>(), 0) << linear.name;
    for (at::Tensor& kept : before.emplace_back(Frozen(linear))) kept = kept.clone();
  }
  const at::Tensor gains = training.buffer.values().clone();
  training.Train(task);
  EXPECT_FALSE(at::equal(training.buffer.values(), gains));
  EXPECT_TRUE(at::isfinite(training.buffer.values()).all().item<bool>());
  for (size_t i = 0; i < training.linears.size(); ++i) {
    const MixedLinear& linear = training.linears[i];
    const std::vector<at::Tensor> after = Frozen(linear);
    for (size_t k = 0; k < after.size(); ++k) {
      EXPECT_TRUE(at::equal(after[k], before[i][k])) << linear.name << " " << k;
    }
    const at::Tensor weight = linear.Finish().Dequantize();
    EXPECT_TRUE(at::equal(weight.index_select(1, linear.salient), before[i][3])) << linear.name;
  }
}

// Spec 11.3, 4: the same of what is stored.
TEST_P(Ptq161Test, Invariant4OnlyGainsMove) {
  const BlockSetting setting(GetParam());
  const MethodResult before = RunMethod(setting.Task(), Quick(0));
  const MethodResult after = RunMethod(setting.Task(), Quick());
  for (size_t i = 0; i < before.block.linears.size(); ++i) {
    const MixedBinaryWeight& start = *before.block.linears[i].mixed;
    const MixedBinaryWeight& end = *after.block.linears[i].mixed;
    ExpectSame(start, end);
    EXPECT_TRUE(at::equal(start.column_gain, at::ones_like(start.column_gain)));
    EXPECT_FALSE(at::equal(start.row_gain, end.row_gain));
    for (const at::Tensor& gains : {end.row_gain, end.row_offset, end.column_gain}) {
      EXPECT_TRUE(at::isfinite(gains).all().item<bool>());
      EXPECT_TRUE(at::equal(gains, gains.to(at::kHalf).to(at::kFloat)));
    }
  }
}

// Spec 11.3, 5: the first step through a block moves every alpha and r by its
// rate, against its gradient, within a hundredth where that is 1e-6 or more.
TEST_P(Ptq161Test, Invariant5FirstStepIsTheLearningRate) {
  const BlockSetting setting(GetParam(), 1);
  const BlockTask task = setting.Task();
  UnderTraining training(task, Quick(1));  // one window, one epoch: one step
  const int64_t used = training.buffer.size();
  const auto of_used = [&](const at::Tensor& all) { return all.slice(0, 0, used).clone(); };
  const at::Tensor before = of_used(training.buffer.values());
  training.Train(task);
  const at::Tensor moved = of_used(training.buffer.values()) - before;
  const at::Tensor grads = of_used(training.buffer.grads());
  const at::Tensor felt = grads.abs().ge(1e-6);
  EXPECT_GT(felt.sum().item<int64_t>(), used / 2);
  int64_t alphas = 0;
  for (const MixedLinear& linear : training.linears) alphas += linear.mean.size(0);
  at::Tensor rates = at::full({used}, 1e-3);
  rates.slice(0, 0, alphas).fill_(5e-4);
  const at::Tensor off = moved.add(rates * grads.sign()).abs().div(rates).masked_select(felt);
  EXPECT_LE(off.max().item<double>(), 0.01);
  EXPECT_EQ(moved.masked_select(grads.eq(0.0)).abs().sum().item<double>(), 0.0);
}

// Spec 11.3, 6.
TEST_P(Ptq161Test, Invariant6LossFalls) {
  const BlockSetting setting(GetParam());
  const BlockTask task = setting.Task();
  const TrainingReport report = UnderTraining(task, Quick(12)).Train(task);
  EXPECT_EQ(report.losses.size(), 12u);
  EXPECT_EQ(report.cosines_turned, 0);
  int falling = 0;
  for (size_t i = 1; i < report.losses.size(); ++i) {
    falling += report.losses[i] <= report.losses[i - 1] ? 1 : 0;
  }
  EXPECT_LT(report.losses.back(), report.losses.front());
  EXPECT_GE(falling, 0.8 * (static_cast<double>(report.losses.size()) - 1));
}

// Spec 11.1: a step whose cosine has turned is told.
TEST_P(Ptq161Test, CosinesThatTurnedAreCounted) {
  const BlockSetting setting(GetParam());
  const BlockTask task = setting.Task();
  UnderTraining training(task, Quick(1));
  training.survey.target_fp.neg_();
  training.survey.target_q.neg_();
  EXPECT_EQ(training.Train(task).cosines_turned, 2 * 12);
}

// Spec 11.3, 7, as far as one block goes: all-binary > mask > trained.
TEST_P(Ptq161Test, Invariant7TrainedBeatsUntrained) {
  const BlockSetting setting(GetParam());
  Ptq161Options binary = Quick(0);
  binary.mask = false;
  const double all_binary = Loss(setting, RunMethod(setting.Task(), binary).block);
  const double untrained = Loss(setting, RunMethod(setting.Task(), Quick(0)).block);
  const double trained = Loss(setting, RunMethod(setting.Task(), Quick(12)).block);
  EXPECT_LT(untrained, all_binary);
  EXPECT_LT(trained, untrained);
}

// Mean over windows of the loss that training lowers, of the block as it is stored.
double StoredLoss(const BlockTask& task, const BlockSurvey& survey, const QuantizedBlock& block) {
  const at::Tensor y = Rebuild(task.block, block).Forward(task.x_q, task.rope);
  double sum = 0;
  for (int64_t j = 0; j < y.size(0); ++j) {
    sum += TwoTargetLoss(y[j], survey.target_fp[j], survey.target_q[j], {}).total;
  }
  return sum / static_cast<double>(y.size(0));
}

// Spec 11.3, 7: on the loss itself, of every block, after the trained ones before it.
TEST_P(Ptq161Test, Invariant7TrainedBeatsUntrainedInEveryBlock) {
  const BlockSetting setting(GetParam());
  at::Tensor x_fp = setting.x, x_q = setting.x;
  CountingSink sink;
  for (int index = 0; index < setting.checkpoint->config().num_layers; ++index) {
    const Block block = LoadBlock(*setting.checkpoint, index);
    const BlockTask task{block, setting.rope, x_fp, x_q, GridSpec(), at::kHalf, {}, 0, at::kCPU};
    const BlockSurvey survey = SurveyBlock(task, Ptq161Options::Statistic::kMax, sink);
    EXPECT_EQ(at::equal(survey.target_fp, survey.target_q), index == 0);
    const QuantizedBlock trained = RunMethod(task, Quick(12)).block;
    const QuantizedBlock untrained = RunMethod(task, Quick(0)).block;
    EXPECT_LT(StoredLoss(task, survey, trained), StoredLoss(task, survey, untrained)) << index;
    x_fp = survey.target_fp;
    x_q = Rebuild(block, trained).Forward(x_q, setting.rope);
  }
}

// Spec 11.3, 10 and trap 1 of 10: the student under training sees no later
// token.
TEST_P(Ptq161Test, Invariant10StudentIsCausal) {
  const BlockSetting setting(GetParam(), 1);
  at::Tensor changed = setting.x.clone();
  changed.select(1, 9).add_(1.0);
  for (const ComputeDtype compute : {ComputeDtype::kFloat32, ComputeDtype::kBfloat16}) {
    Ptq161Options options;
    options.compute = compute;
    ParameterBuffer buffer(1 << 14, at::kCPU);
    std::vector<at::Tensor> salient(setting.block.linears.size(), at::tensor({0, 3}, at::kInt));
    const auto linears = MakeMixedLinears(setting.block, options, salient, buffer);
    const auto forward = [&](const at::Tensor& x) {
      return setting.block.Forward(x, setting.rope, MixedForward(setting.block, linears)).detach();
    };
    const at::Tensor before = forward(setting.x), after = forward(changed);
    EXPECT_TRUE(at::equal(before.slice(1, 0, 9), after.slice(1, 0, 9)));
    EXPECT_FALSE(at::equal(before.slice(1, 9, 10), after.slice(1, 9, 10)));
  }
}

// Spec 11.3, 11: zeros stay, and a row of one value has no gain, so that only
// the columns' gains tell its entries apart.
TEST_P(Ptq161Test, Invariant11ZeroAndConstantRows) {
  BlockSetting setting(GetParam());
  for (Linear& linear : setting.block.linears) {
    linear.weight = linear.weight.clone();
    linear.weight.select(1, 2).zero_();
    linear.weight.select(0, 0).zero_();
    linear.weight.select(0, 1).fill_(0.25);
  }
  for (const auto& [epochs, relative, learned] :
       {std::tuple(0, false, false), std::tuple(2, false, false), std::tuple(2, true, false),
        std::tuple(2, false, true), std::tuple(2, true, true), std::tuple(0, false, true)}) {
    SCOPED_TRACE(StrCat(epochs, " epochs, ", relative, " ", learned));
    Ptq161Options options = Quick(epochs);
    options.relative_gain = relative;
    options.learn_rounding = learned;
    options.rounding_stages = 2;
    options.rounding_steps = 4;
    const MethodResult result = RunMethod(setting.Task(), options);
    for (const QuantizedLinear& linear : result.block.linears) {
      const at::Tensor weight = linear.Dequantize();
      EXPECT_TRUE(at::isfinite(weight).all().item<bool>()) << linear.name;
      EXPECT_EQ(weight.select(0, 0).abs().max().item<double>(), 0.0) << linear.name;
      EXPECT_EQ(linear.mixed->row_gain[0].item<double>(), 0.0) << linear.name;
      EXPECT_EQ(linear.mixed->row_gain[1].item<double>(), 0.0) << linear.name;
      EXPECT_NE(linear.mixed->row_gain[3].item<double>(), 0.0) << linear.name;
      if (epochs > 0 || learned) continue;
      const double most = (weight.select(0, 1) - 0.25).abs().max().item<double>();
      EXPECT_LE(most, 0.25 / 15) << linear.name;  // exact but for the 4-bit columns
    }
  }
}

// Spec 11.3, 13.
TEST_P(Ptq161Test, Invariant13SameTaskSameBytes) {
  const BlockSetting setting(GetParam());
  Ptq161Options options = Quick(2);
  options.shuffle = true;
  const MethodResult first = RunMethod(setting.Task(), options);
  const MethodResult second = RunMethod(setting.Task(), options);
  for (size_t i = 0; i < first.block.linears.size(); ++i) {
    ExpectSame(*first.block.linears[i].mixed, *second.block.linears[i].mixed);
    EXPECT_TRUE(
        at::equal(first.block.linears[i].Dequantize(), second.block.linears[i].Dequantize()));
  }
  EXPECT_EQ(first.metrics, second.metrics);
}

// Spec 11.3, 14 and trap 11 of 10: quantizing what was quantized changes
// hardly a sign.
TEST_P(Ptq161Test, Invariant14SecondPassKeepsTheSigns) {
  BlockSetting setting(GetParam());
  const MethodResult first = RunMethod(setting.Task(), Quick(0));
  setting.block = Rebuild(setting.block, first.block);
  const MethodResult second = RunMethod(setting.Task(), Quick(0));
  double same = 0, all = 0;
  for (size_t i = 0; i < first.block.linears.size(); ++i) {
    const MixedBinaryWeight& a = *first.block.linears[i].mixed;
    const MixedBinaryWeight& b = *second.block.linears[i].mixed;
    if (!at::equal(a.salient, b.salient)) continue;  // activations changed
    same += a.signs.eq(b.signs).sum().item<double>();
    all += static_cast<double>(a.signs.numel());
  }
  EXPECT_GT(all, 0);
  EXPECT_GE(same, 0.98 * all);
}

// Spec 11.3, 14: the learned loss is near 0, a few hundredths to a tenth of the
// first pass's. The rest: ranges of 4 bits are anew those of the rows, and inputs
// of later linears changed, with them some columns of their masks.
TEST_P(Ptq161Test, Invariant14SecondPassHasNextToNothingToLearn) {
  BlockSetting setting(GetParam());
  const double first = RunMethod(setting.Task(), Quick()).metrics.at("train_loss_last");
  setting.block = Rebuild(setting.block, RunMethod(setting.Task(), Quick(0)).block);
  const double second = RunMethod(setting.Task(), Quick()).metrics.at("train_loss_last");
  EXPECT_GT(second, 0);
  EXPECT_LT(second, 0.2 * first);
}

// Beside gradients a weight takes 4 bytes assembled, 28 in its part and 4 for a retry; one share's
// gradients are still there when they are taken apart.
TEST_P(Ptq161Test, BytesCountWhatLearningSignsHolds) {
  const BlockSetting setting(GetParam());
  const auto bytes = [&](int count, bool learned, const at::Device& device) {
    const test::Threads threads(count);
    Ptq161Options options = Quick();
    options.learn_rounding = learned;
    options.rounding_batch = 4;
    return Ptq161(options).WorkingBytes(setting.checkpoint->architecture(),
                                        setting.checkpoint->config(), {12, 16}, device);
  };
  int64_t weights = 0;
  for (const Linear& linear : setting.block.linears) weights += linear.weight.numel();
  const int64_t one = bytes(1, true, at::kCPU);
  EXPECT_GE(one - bytes(1, false, at::kCPU), (4 + 28 + 4 + 8) * weights);
  EXPECT_EQ(bytes(2, true, at::kCPU), one);
  EXPECT_EQ(bytes(4, true, at::kCPU) - one, 2 * 4 * weights);
  const int64_t targets = 2 * TargetBytes(setting.checkpoint->config(), {12, 16}, at::kCPU);
  EXPECT_GT(targets, 0);
  // Gradients of all windows at once: the host holds the rest.
  const int64_t kept = KeptActivationBytes(setting.checkpoint->config(), {12, 16}, 4);
  EXPECT_EQ(bytes(4, true, at::kCUDA), kept + 4 * weights);
  EXPECT_EQ(bytes(4, false, at::kCPU), bytes(1, false, at::kCPU));
}

// Learned signs and codes: a smaller error at the same bits, with the steps
// that were promised, and the same bytes every time.
TEST_P(Ptq161Test, LearnedRoundingBeatsSigns) {
  const BlockSetting setting(GetParam());
  Ptq161Options learned = Quick(4);
  learned.learn_rounding = true;
  learned.rounding_stages = 10;
  learned.rounding_steps = 12;
  CountingSink sink;
  const MethodResult first = Ptq161(learned).Quantize(setting.Task(), sink);
  EXPECT_EQ(sink.steps(), Ptq161(learned).Steps(setting.checkpoint->architecture(),
                                                setting.checkpoint->config(), {12, 16}));
  const MethodResult plain = RunMethod(setting.Task(), Quick(4));
  EXPECT_LT(Loss(setting, first.block), Loss(setting, plain.block));
  EXPECT_GT(first.metrics.at("sign_flips"), 0.001);
  EXPECT_LT(first.metrics.at("sign_flips"), 0.5);
  const MethodResult second = RunMethod(setting.Task(), learned);
  for (size_t i = 0; i < first.block.linears.size(); ++i) {
    EXPECT_TRUE(
        at::equal(first.block.linears[i].mixed->salient, plain.block.linears[i].mixed->salient));
    ExpectSame(*first.block.linears[i].mixed, *second.block.linears[i].mixed);
    EXPECT_TRUE(
        at::equal(first.block.linears[i].Dequantize(), second.block.linears[i].Dequantize()));
  }
}

bool Same(const MethodResult& a, const MethodResult& b) {
  for (size_t i = 0; i < a.block.linears.size(); ++i) {
    const MixedBinaryWeight& x = *a.block.linears[i].mixed;
    const MixedBinaryWeight& y = *b.block.linears[i].mixed;
    const bool same = at::equal(x.salient, y.salient) && at::equal(x.codes, y.codes) &&
                      at::equal(x.scales, y.scales) && at::equal(x.signs, y.signs) &&
                      at::equal(x.row_gain, y.row_gain) && at::equal(x.row_offset, y.row_offset) &&
                      at::equal(x.column_gain, y.column_gain);
    if (!same) return false;
  }
  return true;
}

// No option is accepted without effect.
TEST_P(Ptq161Test, EverySwitchChangesTheResult) {
  using Options = Ptq161Options;
  const std::vector<std::pair<const char*, std::function<void(Options&)>>> switches = {
      {"mask", [](Options& o) { o.mask = false; }},
      {"exact_top_k", [](Options& o) { o.exact_top_k = true; }},
      {"salient_multiple", [](Options& o) { o.salient_multiple = 8; }},
      {"salient_grid", [](Options& o) { o.salient_grid = true; }},
      {"centered_gain", [](Options& o) { o.centered_gain = true; }},
      {"relative_gain", [](Options& o) { o.relative_gain = true; }},
      {"shuffle", [](Options& o) { o.shuffle = true; }},
      {"gain_rate", [](Options& o) { o.gain_rate *= 2; }},
      {"rank_one_rate", [](Options& o) { o.rank_one_rate *= 2; }},
      {"mse_weight", [](Options& o) { o.mse_weight = 2; }},
      {"cosine_weight", [](Options& o) { o.cosine_weight = 0; }},
      {"token_cosine", [](Options& o) { o.token_cosine = true; }},
      {"token_energy_limit", [](Options& o) { o.token_energy_limit = 0.5; }},
      {"salient_ratio", [](Options& o) { o.salient_ratio = 0.5; }},
      {"learn_rounding", [](Options& o) { o.learn_rounding = true, o.rounding_stages = 2; }},
      {"compute", [](Options& o) { o.compute = ComputeDtype::kBfloat16; }},
      {"mean", [](Options& o) { o.statistic = Options::Statistic::kMean; }},
      {"sensitivity", [](Options& o) { o.statistic = Options::Statistic::kSensitivity; }}};
  const BlockSetting setting(GetParam());
  const MethodResult plain = RunMethod(setting.Task(), Quick(1));
  EXPECT_TRUE(Same(plain, RunMethod(setting.Task(), Quick(1))));
  for (const auto& [name, change] : switches) {
    Options options = Quick(1);
    change(options);
    const MethodResult result = RunMethod(setting.Task(), options);
    EXPECT_FALSE(Same(plain, result)) << name;
    EXPECT_LT(Loss(setting, result.block), 1e9) << name;
    EXPECT_LE(result.metrics.size(), 64u) << name;
    for (const QuantizedLinear& linear : result.block.linears) {
      if (options.salient_multiple == 0) continue;
      EXPECT_EQ(linear.mixed->salient_columns() % options.salient_multiple, 0);
    }
  }
}

// Other roundings of the products, the same training.
TEST_P(Ptq161Test, Bfloat16TrainsAsFloat32Does) {
  const BlockSetting setting(GetParam());
  for (const bool learn : {false, true}) {
    Ptq161Options options = Quick();
    options.learn_rounding = learn;
    options.rounding_stages = 4;
    const double exact = Loss(setting, RunMethod(setting.Task(), options).block);
    options.compute = ComputeDtype::kBfloat16;
    const double rounded = Loss(setting, RunMethod(setting.Task(), options).block);
    EXPECT_NEAR(rounded, exact, (learn ? 0.1 : 0.01) * exact);
  }
}

TEST_P(Ptq161Test, Bfloat16TakesLinearsOfOneKindOfColumn) {
  const BlockSetting setting(GetParam());
  Ptq161Options signs_only = Quick(2), codes_only = Quick(2);
  signs_only.mask = false;
  codes_only.salient_multiple = 4096;
  for (Ptq161Options options : {signs_only, codes_only}) {
    for (const bool learn : {false, true}) {
      options.learn_rounding = learn;
      options.rounding_stages = 2;
      options.compute = ComputeDtype::kFloat32;
      const double exact = Loss(setting, RunMethod(setting.Task(), options).block);
      options.compute = ComputeDtype::kBfloat16;
      const double rounded = Loss(setting, RunMethod(setting.Task(), options).block);
      EXPECT_NEAR(rounded, exact, 0.1 * exact);
    }
  }
}

// Puts a NaN into what is trained after a step, counted as they are taken.
class NanAfterStep : public CountingSink {
 public:
  NanAfterStep(const ParameterBuffer& buffer, int64_t step) : buffer_(buffer), step_(step) {}

  void Advance(int64_t steps, std::string_view what) override {
    CountingSink::Advance(steps, what);
    taken_ += steps;
    if (taken_ == step_) buffer_.values().fill_(std::numeric_limits<float>::quiet_NaN());
  }

 private:
  const ParameterBuffer& buffer_;
  int64_t step_;
  int64_t taken_ = 0;
};

// What the last step does is seen by no loss.
TEST_P(Ptq161Test, ALastStepThatBreaksDownIsAFailedAttempt) {
  const BlockSetting setting(GetParam());
  UnderTraining gains(setting.Task(), Quick(1));
  NanAfterStep last_of_all(gains.buffer, setting.x.size(0));
  EXPECT_EQ(TrainBlock(setting.Task(), gains.options, gains.survey, gains.linears, gains.buffer,
                       last_of_all)
                .retries,
            1);
  EXPECT_EQ(last_of_all.steps(), setting.x.size(0));
  EXPECT_TRUE(AllFinite(gains.buffer.values()));

  Ptq161Options options = Quick(1);
  options.learn_rounding = true;
  options.rounding_stages = 2;
  options.rounding_steps = 3;
  for (const int64_t step : {3, 6}) {
    UnderTraining signs(setting.Task(), options);
    NanAfterStep last_of_stage(signs.buffer, step);
    LearnRounding(setting.Task(), options, signs.survey, signs.linears, signs.buffer,
                  last_of_stage);
    EXPECT_EQ(last_of_stage.steps(), 6);
    EXPECT_TRUE(AllFinite(signs.buffer.values()));
  }
}

// Nor one of learned rounding, the rates included.
TEST_P(Ptq161Test, EveryOptionOfLearnedRoundingChangesTheResult) {
  using Options = Ptq161Options;
  const std::vector<std::pair<const char*, std::function<void(Options&)>>> changes = {
      {"rounding_stages", [](Options& o) { o.rounding_stages = 3; }},
      {"rounding_steps", [](Options& o) { o.rounding_steps = 5; }},
      {"rounding_batch", [](Options& o) { o.rounding_batch = 2; }},
      {"rounding_rate", [](Options& o) { o.rounding_rate *= 2; }},
      {"rounding_scale_rate", [](Options& o) { o.rounding_scale_rate *= 2; }}};
  const BlockSetting setting(GetParam());
  Options learned = Quick(1);
  learned.learn_rounding = true;
  learned.rounding_stages = 2;
  learned.rounding_steps = 4;
  const MethodResult plain = RunMethod(setting.Task(), learned);
  EXPECT_TRUE(Same(plain, RunMethod(setting.Task(), learned)));
  for (const auto& [name, change] : changes) {
    Options options = learned;
    change(options);
    EXPECT_FALSE(Same(plain, RunMethod(setting.Task(), options))) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, Ptq161Test, ::testing::Values("llama", "qwen3", "opt"));

// What fp16 cannot hold is counted by linear; where it holds all, there is no count.
TEST(Ptq161Errors, GainsBeyondFp16AreCounted) {
  BlockSetting setting("llama");
  Linear& last = setting.block.linears.back();
  const std::string clipped = kClippedMetric;
  const MethodResult plain = RunMethod(setting.Task(), Quick(0));
  for (const auto& [name, value] : plain.metrics) {
    EXPECT_FALSE(name.starts_with(clipped)) << name << " " << value;
  }
  last.weight = last.weight * 1e7;
  const MethodResult result = RunMethod(setting.Task(), Quick(0));
  const MixedBinaryWeight& stored = *result.block.linears.back().mixed;
  // Every row's gain, at the least.
  EXPECT_GE(result.metrics.at(clipped + last.name), static_cast<double>(stored.rows()));
  EXPECT_TRUE(stored.row_gain.eq(65504.0).all().item<bool>());
  EXPECT_EQ(std::count_if(result.metrics.begin(), result.metrics.end(),
                          [&](const auto& metric) { return metric.first.starts_with(clipped); }),
            1);
}

// Trap 9 of 10: a loss that is not finite ends the block with its place.
TEST(Ptq161Errors, ActivationOverflowNamesBlockAndStep) {
  BlockSetting setting("llama");
  setting.x.mul_(1e30);
  setting.block.linears.back().weight = setting.block.linears.back().weight * 1e30;
  const EngineError error = test::ErrorOf([&] { RunMethod(setting.Task(), Quick(1)); });
  EXPECT_EQ(error.reason, "NON_FINITE_LOSS");
  EXPECT_TRUE(test::Mentions(error, "block 0")) << error.what();
  EXPECT_TRUE(test::Mentions(error, "step 1 ")) << error.what();
}

Ptq161Options Parse(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text);
  JsonObject object(json, "method.ptq161");
  const Ptq161Options options = ParsePtq161(object);
  object.Finish();
  return options;
}

// Trap 2 of 10: the defaults are the method.
TEST(Ptq161Parse, DefaultsAreTheMethod) {
  const Ptq161Options options = Parse("{}");
  EXPECT_TRUE(options.mask);
  EXPECT_EQ(options.salient_ratio, 0.2);
  EXPECT_EQ(options.epochs, 20);
  EXPECT_EQ(options.gain_rate, 5e-4);
  EXPECT_EQ(options.rank_one_rate, 1e-3);
  EXPECT_EQ(options.statistic, Ptq161Options::Statistic::kMax);
  EXPECT_EQ(options.cosine_weight, 1);
  EXPECT_TRUE(options == Ptq161Options());
  EXPECT_FALSE(options.shuffle || options.relative_gain || options.salient_grid ||
               options.centered_gain || options.exact_top_k || options.token_cosine ||
               options.learn_rounding);
}

TEST(Ptq161Parse, RecipePlusAndFieldsOverIt) {
  const Ptq161Options plus = Parse(R"({"recipe": "ptq161-plus", "rounding_stages": 7})");
  EXPECT_TRUE(plus.learn_rounding);
  EXPECT_FALSE(plus.salient_grid || plus.centered_gain || plus.relative_gain || plus.shuffle);
  EXPECT_EQ(plus.rounding_stages, 7);
  EXPECT_EQ(plus.epochs, 2);
  EXPECT_EQ(plus.token_energy_limit, 300);
  EXPECT_EQ(Parse(R"({"recipe": "ptq161-plus", "epochs": 9})").epochs, 9);
  EXPECT_FALSE(Parse(R"({"recipe": "ptq161"})").learn_rounding);
  EXPECT_EQ(plus.statistic, Ptq161Options::Statistic::kSensitivity);
  const Ptq161Options other =
      Parse(R"({"recipe": "ptq161-plus", "shuffle": true, "statistic": "STATISTIC_MAX"})");
  EXPECT_TRUE(other.learn_rounding && other.shuffle && !other.relative_gain);
  EXPECT_EQ(other.statistic, Ptq161Options::Statistic::kMax);
  EXPECT_EQ(Parse(R"({"token_energy_limit": 300})").token_energy_limit, 300);
  EXPECT_EQ(Parse(R"({"recipe": "ptq161-plus", "token_energy_limit": -1})").token_energy_limit, 0);
}

struct BadOption {
  const char* name;
  const char* json;
  const char* words;
};

class BadOptionTest : public ::testing::TestWithParam<BadOption> {};

TEST_P(BadOptionTest, IsRefusedByName) {
  const EngineError error = test::ErrorOf([] { Parse(GetParam().json); });
  EXPECT_EQ(error.reason, "INVALID_SPEC");
  EXPECT_TRUE(test::Mentions(error, GetParam().words)) << error.what();
}

INSTANTIATE_TEST_SUITE_P(
    Options, BadOptionTest,
    ::testing::Values(BadOption{"ratio_too_large", R"({"salient_ratio": 0.51})",
                                "salient_ratio must be above 0 and at most 0.5 (left out = "
                                "default, 0.2), got 0.51"},
                      BadOption{"stop_improvement", R"({"stop_improvement": 1.5})",
                                "stop_improvement must be 0 (never) or a share below 1, got 1.5"},
                      BadOption{"ratio_zero", R"({"salient_ratio": 0})",
                                "salient_ratio must be above 0 (left out = default), got 0"},
                      BadOption{"ratio_negative", R"({"salient_ratio": -0.1})", "salient_ratio"},
                      BadOption{"epochs", R"({"epochs": -1})", "epochs"},
                      BadOption{"statistic", R"({"statistic": "MEDIAN"})", "STATISTIC_MEAN"},
                      BadOption{"recipe", R"({"recipe": "plus"})", "ptq161-plus"},
                      BadOption{"unknown", R"({"shufle": true})", "shufle"},
                      BadOption{"grid", R"({"grid": {"bits": 2}})", "grid"},
                      BadOption{"rate", R"({"gain_rate": -1})", "gain_rate"},
                      BadOption{"rate_zero", R"({"rank_one_rate": 0})", "rank_one_rate"}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace quantry::engine
