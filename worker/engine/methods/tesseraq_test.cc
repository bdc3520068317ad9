#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "worker/engine/base/json_object.h"
#include "worker/engine/methods/rtn/rtn.h"
#include "worker/engine/methods/tesseraq/options.h"
#include "worker/engine/methods/tesseraq/tesseraq.h"
#include "worker/engine/methods/testing/setting.h"
#include "worker/engine/methods/working_bytes.h"
#include "worker/engine/reconstruct/rounding_schedule.h"
#include "worker/engine/reconstruct/testing/stopping_store.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/threads.h"

namespace quantry::engine {
namespace {

TesseraqOptions Parsed(const char* options) {
  const nlohmann::json json = nlohmann::json::parse(options);
  JsonObject object(json, "tesseraq");
  return ParseTesseraqOptions(object);
}

// Every part that trains heeds the type of products.
TEST(TesseraqOptionsTest, ComputeDtypeReachesEveryPart) {
  for (const auto& [name, dtype] :
       {std::pair{"FLOAT32", ComputeDtype::kFloat32}, {"BFLOAT16", ComputeDtype::kBfloat16}}) {
    const std::string options =
        std::string(R"({"recipe": "tesseraq-plus", "compute_dtype": "COMPUTE_DTYPE_)") + name +
        R"("})";
    const TesseraqOptions parsed = Parsed(options.c_str());
    EXPECT_EQ(parsed.compute, dtype) << name;
    EXPECT_EQ(parsed.signround.compute, dtype) << name;
    EXPECT_EQ(parsed.tuning.compute, dtype) << name;
  }
  const TesseraqOptions plus = Parsed(R"({"recipe": "tesseraq-plus"})");
  for (const ComputeChoice& choice : {plus.compute, plus.signround.compute, plus.tuning.compute}) {
    EXPECT_FALSE(choice.has_value()) << "the machine's to choose";
  }
  for (const char* published : {"{}", R"({"recipe": "tesseraq-w2g64"})"}) {
    EXPECT_EQ(Parsed(published).compute, ComputeDtype::kFloat32) << published;
  }
}

TEST(TesseraqOptionsTest, BudgetsSayHowLongAJobTrains) {
  const struct {
    const char* options;
    int64_t steps;
    double rate;
    int64_t tuning_steps = 0;
  } cases[] = {
      {R"({})", 250, 1e-3},
      {R"({"budget": "BUDGET_FULL"})", 250, 1e-3},
      {R"({"budget": "BUDGET_BALANCED"})", 50, 5e-3},
      {R"({"budget": "BUDGET_FAST"})", 25, 1e-2},
      {R"({"budget": "BUDGET_BALANCED", "recipe": "tesseraq-w2g64"})", 50, 5e-3},
      {R"({"budget": "BUDGET_FAST", "steps_per_stage": 40})", 40, 1e-2},
      {R"({"budget": "BUDGET_FAST", "learning_rate": 0.02})", 25, 2e-2},
      {R"({"recipe": "tesseraq-plus"})", 8, 4e-2, 100},
      {R"({"recipe": "tesseraq-plus", "budget": "BUDGET_FAST"})", 8, 4e-2, 100},
      {R"({"recipe": "tesseraq-plus", "budget": "BUDGET_BALANCED"})", 14, 3.5e-2, 150},
      {R"({"recipe": "tesseraq-plus", "budget": "BUDGET_FULL"})", 25, 3e-2, 200},
      {R"({"recipe": "tesseraq-plus", "budget": "BUDGET_FULL", "model_tuning_steps": 7})", 25, 3e-2,
       7},
      {R"({"recipe": "tesseraq-plus", "budget": "BUDGET_FULL", "steps_per_stage": 9, "learning_rate": 0.02})",
       9, 2e-2, 200},
  };
  for (const auto& c : cases) {
    const ProgressiveRoundingOptions rounding = Parsed(c.options).rounding;
    EXPECT_EQ(Parsed(c.options).tuning.steps, c.tuning_steps) << c.options;
    EXPECT_EQ(rounding.steps_per_stage, c.steps) << c.options;
    EXPECT_DOUBLE_EQ(rounding.rates.rounding, c.rate) << c.options;
    EXPECT_DOUBLE_EQ(rounding.rates.scale, c.rate) << c.options;
    EXPECT_EQ(rounding.schedule.size(), 20u) << c.options;
    EXPECT_EQ(Parsed(c.options).awq.search_tokens, c.steps == 250 ? 65536 : 8192) << c.options;
  }
}

TEST(TesseraqOptionsTest, StagesAndSchedulesAreTakenAsGiven) {
  EXPECT_EQ(Parsed(R"({"stages": 10})").rounding.schedule, ScheduleOf(10));
  EXPECT_EQ(Parsed(R"({"stages": 7, "recipe": "tesseraq-plus"})").rounding.schedule, ScheduleOf(7));
  EXPECT_EQ(Parsed(R"({"schedule": [0.6, 0.2, 0.01]})").rounding.schedule,
            (std::vector<double>{0.6, 0.2, 0.01}));
}

TEST(TesseraqOptionsTest, ARecipeSaysWhatItStartsFrom) {
  EXPECT_EQ(Parsed("{}").init, RoundingInit::kAwq);
  EXPECT_EQ(Parsed(R"({"recipe": "tesseraq-w2g64"})").init, RoundingInit::kAwq);
  EXPECT_EQ(Parsed(R"({"recipe": "tesseraq-plus"})").init, RoundingInit::kSignround);
  EXPECT_EQ(Parsed(R"({"recipe": "tesseraq-plus", "init": "INIT_AWQ"})").init, RoundingInit::kAwq);
  EXPECT_EQ(Parsed(R"({"recipe": "tesseraq-plus", "init": "INIT_NONE"})").init,
            RoundingInit::kNone);
  EXPECT_EQ(Parsed(R"({"activations": {"bits": 4}})").init, RoundingInit::kAwq);
  const std::pair<int, RoundingInit> plus[] = {{4, RoundingInit::kQuarot},
                                               {6, RoundingInit::kQuarot},
                                               {8, RoundingInit::kSignround},
                                               {16, RoundingInit::kSignround}};
  for (const auto& [bits, init] : plus) {
    const nlohmann::json message = {{"recipe", "tesseraq-plus"}, {"activations", {{"bits", bits}}}};
    EXPECT_EQ(Parsed(message.dump().c_str()).init, init) << bits;
    JsonObject options(message, "tesseraq");
    ActivationSpec activations;
    activations.bits = bits;
    EXPECT_EQ(TesseraqRotation(options, activations).enabled, init == RoundingInit::kQuarot);
  }
}

TEST(TesseraqOptionsTest, ScalesAreTunedUnlessDisabled) {
  EXPECT_TRUE(Parsed("{}").rounding.rates.tune_scale);
  EXPECT_DOUBLE_EQ(Parsed("{}").rounding.rates.scale_weight_decay, 1e-4);
  EXPECT_FALSE(Parsed(R"({"disable_scale_tuning": true})").rounding.rates.tune_scale);
  EXPECT_EQ(Parsed(R"({"scale_weight_decay": -1})").rounding.rates.scale_weight_decay, 0);
}

TEST(TesseraqOptionsTest, FixedScalesStayWhereTheWholeModelIsTuned) {
  const struct {
    const char* options;
    int64_t steps;
    double scale_rate;
    double dense_rate;
  } cases[] = {
      {R"({"recipe": "tesseraq-plus", "grid": {"bits": 2}})", 100, 0.01, 0.003},
      {R"({"recipe": "tesseraq-plus", "grid": {"bits": 3}})", 100, 0.005, 0.003},
      {R"({"recipe": "tesseraq-plus", "grid": {"bits": 4}})", 100, 0.0025, 0.003},
      {R"({"recipe": "tesseraq-plus", "grid": {"bits": 4}, "model_tuning_rate": 0.01})", 100, 0.01,
       0.003},
      {R"({"grid": {"bits": 4}, "model_tuning_steps": 9})", 9, 0.003, 0},
      {R"({"recipe": "tesseraq-plus", "disable_scale_tuning": true})", 100, 0, 0.003},
      {R"({"disable_scale_tuning": true, "model_tuning_steps": 9,
           "model_tuning_dense_rate": 0.5})",
       9, 0, 0.5},
      {R"({"recipe": "tesseraq-plus", "disable_scale_tuning": true,
           "model_tuning_dense_rate": -1})",
       0, 0, 0},
  };
  for (const auto& c : cases) {
    const ModelTuningOptions tuning = Parsed(c.options).tuning;
    EXPECT_EQ(tuning.steps, c.steps) << c.options;
    EXPECT_DOUBLE_EQ(tuning.scale_rate, c.scale_rate) << c.options;
    EXPECT_DOUBLE_EQ(tuning.dense_rate, c.dense_rate) << c.options;
  }
}

TEST(TesseraqOptionsTest, ReachAndHeldOutWindowsAreOffByDefault) {
  for (const char* options : {"{}", R"({"recipe": "tesseraq-plus"})", R"({"rounding_reach": 1})"}) {
    EXPECT_EQ(Parsed(options).rounding_reach, 1) << options;
    EXPECT_EQ(Parsed(options).rounding.held_out, 0) << options;
  }
  const TesseraqOptions both = Parsed(R"({"rounding_reach": 2, "held_out_samples": 12})");
  EXPECT_EQ(both.rounding_reach, 2);
  EXPECT_EQ(both.rounding.held_out, 12);
}

TEST(TesseraqOptionsTest, HeldOutWindowsLeaveABatch) {
  const Tesseraq method(Parsed(R"({"held_out_samples": 12, "batch_size": 4})"));
  EXPECT_NO_THROW(method.Check({16, 8}));
  const EngineError error = test::ErrorOf([&] { method.Check({15, 8}); });
  EXPECT_EQ(error.reason, "INVALID_SPEC");
  EXPECT_TRUE(test::Mentions(error, "held_out_samples 12")) << error.what();
}

// Each share of a step has gradients of its own.
TEST(TesseraqOptionsTest, BytesCountTheGradientsOfEveryShare) {
  const test::Setting setting("llama");
  const Tesseraq method(Parsed(R"({"init": "INIT_NONE", "batch_size": 4})"));
  const auto bytes = [&](int count, const at::Device& device) {
    const test::Threads threads(count);
    return method.WorkingBytes(setting.checkpoint->architecture(), setting.checkpoint->config(),
                               setting.stream(), device);
  };
  const int64_t one = bytes(1, at::kCPU);
  int64_t weights = 0;
  for (const Linear& linear : setting.block.linears) weights += linear.weight.numel();
  EXPECT_EQ(bytes(4, at::kCPU) - one, 3 * 4 * weights);
  EXPECT_EQ(bytes(3, at::kCPU), one);  // four windows in one share
  const int64_t targets = TargetBytes(setting.checkpoint->config(), setting.stream(), at::kCPU);
  const int64_t groups = BlockGroups(setting.checkpoint->architecture(),
                                     setting.checkpoint->config(), Parsed("{}").group_size);
  const int64_t state = ProgressiveRounding::StateBytes(weights, groups);
  EXPECT_EQ(bytes(4, at::kCUDA), one - targets - state);  // at once; the host holds the rest
}

// Targets lie in host memory: windows add to what the host holds, not to a GPU.
TEST(TesseraqOptionsTest, BytesCountTargetsForTheHostAlone) {
  const test::Setting setting("llama");
  const ModelConfig& config = setting.checkpoint->config();
  for (const char* init : {"INIT_NONE", "INIT_SIGNROUND"}) {
    const Tesseraq method(Parsed((std::string(R"({"init": ")") + init + R"("})").c_str()));
    const auto bytes = [&](int64_t windows, const at::Device& device) {
      return method.WorkingBytes(setting.checkpoint->architecture(), config, {windows, 16}, device);
    };
    EXPECT_EQ(bytes(72, at::kCPU) - bytes(8, at::kCPU), 64 * 16 * config.hidden_size * 4) << init;
    EXPECT_EQ(bytes(72, at::kCUDA), bytes(8, at::kCUDA)) << init;
  }
}

int64_t LargestWeight(const test::Setting& setting) {
  int64_t largest = 0;
  for (const Linear& linear : setting.block.linears) {
    largest = std::max(largest, linear.weight.numel());
  }
  return largest;
}

// A linear's weight is rounded for its products, in both types, in every share.
TEST(TesseraqOptionsTest, BytesCountWhatProductsRound) {
  const test::Setting setting("llama");
  const test::Threads threads(4);
  const auto bytes = [&](const char* options) {
    return Tesseraq(Parsed(options))
        .WorkingBytes(setting.checkpoint->architecture(), setting.checkpoint->config(),
                      setting.stream(), at::kCPU);
  };
  const int64_t largest = LargestWeight(setting);
  EXPECT_EQ(bytes(R"({"init": "INIT_NONE", "compute_dtype": "COMPUTE_DTYPE_BFLOAT16"})") -
                bytes(R"({"init": "INIT_NONE"})"),
            4 * 6 * largest);
}

// All windows of a step that tunes ranges are one share. Where the CPU chooses the type, any
// machine counts what one that multiplies bfloat16 holds.
TEST(TesseraqOptionsTest, BytesCountWhatProductsOfTheStartRound) {
  const test::Setting setting("llama");
  const test::Threads threads(4);
  const auto bytes = [&](ComputeChoice compute, const at::Device& device) {
    SignroundOptions options;
    options.compute = compute;
    return TuneRangesBytes(options, setting.checkpoint->architecture(),
                           setting.checkpoint->config(), setting.stream(), device);
  };
  const int64_t largest = LargestWeight(setting);
  const int64_t single = bytes(ComputeDtype::kFloat32, at::kCPU);
  EXPECT_EQ(bytes(ComputeDtype::kBfloat16, at::kCPU) - single, 6 * largest);
  EXPECT_EQ(bytes(std::nullopt, at::kCPU) - single, 6 * largest);
  EXPECT_EQ(bytes(std::nullopt, at::kCUDA), bytes(ComputeDtype::kFloat32, at::kCUDA));
}

// Of attention one number a head and pair of tokens, whatever is as wide besides.
TEST(TesseraqOptionsTest, BytesCountAttentionOnce) {
  const test::Setting setting("llama");
  const ModelConfig& config = setting.checkpoint->config();
  const auto bytes = [&](int64_t length) { return KeptActivationBytes(config, {8, length}, 4); };
  for (const int64_t length : {16, 2048}) {
    const int64_t pairs = 4 * config.num_heads * length * length;
    EXPECT_EQ(bytes(2 * length) - 2 * bytes(length), 2 * 4 * pairs) << length;
  }
}

TEST(TesseraqOptionsTest, BytesCountEveryGroup) {
  const test::Setting setting("llama");
  const auto bytes = [&](const char* grid) {
    const std::string options =
        std::string(R"({"init": "INIT_NONE", "grid": {"bits": 2, "group_size": )") + grid + "}}";
    return Tesseraq(Parsed(options.c_str()))
        .WorkingBytes(setting.checkpoint->architecture(), setting.checkpoint->config(),
                      setting.stream(), at::kCPU);
  };
  int64_t more = 0;  // groups of 16 than rows
  for (const Linear& linear : setting.block.linears) {
    more += linear.weight.numel() / 16 - linear.weight.size(0);
  }
  EXPECT_GT(more, 0);
  EXPECT_EQ(bytes("16") - bytes("-1"), more * (SoftRounding::kBytesPerGroup + 4));
}

// What Quantize makes of the first block of a random model.
struct Result {
  std::string options;
  const test::Setting& setting;
  StageStore* stages = nullptr;

  MethodResult Run() const {
    const Tesseraq method(Parsed(options.c_str()));
    BlockTask task = setting.Task(kGrid);
    task.stages = stages;
    test::CountingSink counter;
    MethodResult result = method.Quantize(task, counter);
    EXPECT_EQ(counter.steps(), method.Steps(setting.checkpoint->architecture(),
                                            setting.checkpoint->config(), setting.stream()));
    return result;
  }

  static constexpr GridSpec kGrid = {2, 16, false};
};

void ExpectSame(const QuantizedBlock& a, const QuantizedBlock& b) {
  ASSERT_EQ(a.linears.size(), b.linears.size());
  for (size_t i = 0; i < a.linears.size(); ++i) {
    EXPECT_TRUE(a.linears[i].codes.equal(b.linears[i].codes)) << i;
    EXPECT_TRUE(a.linears[i].scales.equal(b.linears[i].scales)) << i;
    EXPECT_TRUE(a.linears[i].zeros.equal(b.linears[i].zeros)) << i;
  }
  for (const auto& [name, tensor] : a.dense) EXPECT_TRUE(tensor.equal(b.dense.at(name))) << name;
}

// Stopped after three stages it goes on to what `whole` is.
void ExpectSameWhenResumed(const std::string& options, const test::Setting& setting,
                           const MethodResult& whole) {
  test::StoppingStore store;
  store.stop_after = 3;
  EXPECT_THROW((Result{options, setting, &store}.Run()), EngineError);
  store.stop_after = -1;
  const MethodResult rest = Result{options, setting, &store}.Run();
  EXPECT_EQ(rest.metrics, whole.metrics);
  ExpectSame(rest.block, whole.block);
}

TEST(TesseraqStartTest, TunedRangesAreABetterStartThanMinAndMax) {
  const test::Setting setting("llama");
  const std::string steps = R"(, "stages": 2, "steps_per_stage": 2})";
  const MethodResult tuned = Result{R"({"init": "INIT_SIGNROUND")" + steps, setting}.Run();
  EXPECT_LT(tuned.metrics.at("range_loss_best"), tuned.metrics.at("range_loss_first"));
  EXPECT_EQ(tuned.metrics.count("clip_loss_last"), 0U);
  const MethodResult plain = Result{R"({"init": "INIT_NONE")" + steps, setting}.Run();
  EXPECT_LT(tuned.metrics.at("loss_init"), plain.metrics.at("loss_init"));
}

TEST(TesseraqGuardTest, KeepsWhatIsBetterOnHeldOutWindows) {
  const test::Setting setting("llama");
  const MethodResult result =
      Result{R"({"init": "INIT_NONE", "steps_per_stage": 8, "learning_rate": 0.03,
                 "held_out_samples": 8})",
             setting}
          .Run();
  EXPECT_EQ(result.metrics.at("init_kept"), 0);
  EXPECT_LT(result.metrics.at("held_out_loss_learned"),
            0.8 * result.metrics.at("held_out_loss_init"));
  EXPECT_GT(result.metrics.at("flip_ratio"), 0.02);
}

TEST(TesseraqGuardTest, KeepsTheStartWhenLearningIsSabotaged) {
  const test::Setting setting("llama");
  const std::string sabotage =
      R"({"init": "INIT_NONE", "stages": 2, "steps_per_stage": 5, "learning_rate": 10,
          "dense_learning_rate": 0.1, "final_steps": 2)";
  const MethodResult guarded = Result{sabotage + R"(, "held_out_samples": 8})", setting}.Run();
  EXPECT_EQ(guarded.metrics.at("init_kept"), 1);
  EXPECT_GT(guarded.metrics.at("held_out_loss_learned"), guarded.metrics.at("held_out_loss_init"));
  EXPECT_EQ(guarded.metrics.at("flip_ratio"), 0);
  EXPECT_EQ(guarded.metrics.at("scale_factor_max"), 1);
  test::CountingSink counter;
  ExpectSame(guarded.block, Rtn().Quantize(setting.Task(Result::kGrid), counter).block);
  const MethodResult unguarded = Result{sabotage + "}", setting}.Run();
  EXPECT_EQ(unguarded.metrics.count("init_kept"), 0U);
  EXPECT_GT(unguarded.metrics.at("flip_ratio"), 0.05);
}

TEST(TesseraqGuardTest, StagesWorseThanTheStartAreRepeatedResumedOrNot) {
  const test::Setting setting("llama");
  const std::string options = R"({"init": "INIT_NONE", "stages": 6, "steps_per_stage": 4,
      "learning_rate": 10, "dense_learning_rate": 0.1)";
  const std::string guarded = options + R"(, "repeat_worse_stages": true})";
  const MethodResult whole = Result{guarded, setting}.Run();
  const MethodResult unguarded = Result{options + "}", setting}.Run();
  EXPECT_GE(whole.metrics.at("retries"), 1);
  EXPECT_EQ(unguarded.metrics.at("retries"), 0);
  EXPECT_GT(unguarded.metrics.at("loss_soft"), unguarded.metrics.at("loss_init"));
  EXPECT_LT(whole.metrics.at("loss_soft"), unguarded.metrics.at("loss_soft"));
  ExpectSameWhenResumed(guarded, setting, whole);
}

TEST(TesseraqOptionsTest, OnlyPlusRepeatsWorseStagesUnasked) {
  EXPECT_FALSE(Parsed("{}").repeat_worse_stages);
  EXPECT_FALSE(Parsed(R"({"recipe": "tesseraq-w2g64"})").repeat_worse_stages);
  EXPECT_TRUE(Parsed(R"({"repeat_worse_stages": true})").repeat_worse_stages);
  EXPECT_TRUE(Parsed(R"({"recipe": "tesseraq-plus"})").repeat_worse_stages);
  EXPECT_FALSE(
      Parsed(R"({"recipe": "tesseraq-plus", "repeat_worse_stages": false})").repeat_worse_stages);
}

TEST(TesseraqOptionsTest, AnEnergyLimitIsTheRangesToo) {
  EXPECT_EQ(Parsed("{}").token_energy_limit, 0);
  EXPECT_EQ(Parsed(R"({"recipe": "tesseraq-plus"})").token_energy_limit, 300);
  const TesseraqOptions limited = Parsed(R"({"token_energy_limit": 7})");
  EXPECT_EQ(limited.token_energy_limit, 7);
  EXPECT_EQ(limited.signround.token_energy_limit, 7);
  EXPECT_EQ(Parsed(R"({"recipe": "tesseraq-plus", "token_energy_limit": -1})").token_energy_limit,
            0);
}

TEST(TesseraqGuardTest, ResumedInsideABlockItGivesTheSameBytes) {
  const test::Setting setting("llama");
  for (const char* rate : {"0.03", "10"}) {  // learned kept, start kept
    const std::string options = std::string(R"({"init": "INIT_NONE", "stages": 6,
        "steps_per_stage": 4, "rounding_reach": 2, "held_out_samples": 8, "learning_rate": )") +
                                rate + "}";
    const MethodResult whole = Result{options, setting}.Run();
    EXPECT_EQ(whole.metrics.at("init_kept"), std::string(rate) == "10" ? 1 : 0);
    ExpectSameWhenResumed(options, setting, whole);
  }
}

}  // namespace
}  // namespace quantry::engine
