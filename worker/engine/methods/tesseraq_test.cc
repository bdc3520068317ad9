#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "worker/engine/base/json_object.h"
#include "worker/engine/methods/tesseraq/options.h"
#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

TesseraqOptions Parsed(const char* options) {
  const nlohmann::json json = nlohmann::json::parse(options);
  JsonObject object(json, "tesseraq");
  return ParseTesseraqOptions(object);
}

TEST(TesseraqOptionsTest, BudgetsKeepRateTimesSteps) {
  const struct {
    const char* options;
    int64_t steps;
    double rate;
  } cases[] = {
      {R"({})", 250, 1e-3},
      {R"({"budget": "BUDGET_FULL"})", 250, 1e-3},
      {R"({"budget": "BUDGET_BALANCED"})", 50, 5e-3},
      {R"({"budget": "BUDGET_FAST"})", 25, 1e-2},
      {R"({"budget": "BUDGET_BALANCED", "recipe": "tesseraq-w2g64"})", 50, 5e-3},
      {R"({"budget": "BUDGET_FAST", "steps_per_stage": 40})", 40, 1e-2},
      {R"({"budget": "BUDGET_FAST", "learning_rate": 0.02})", 25, 2e-2},
      {R"({"recipe": "tesseraq-plus"})", 25, 3e-2},
  };
  for (const auto& c : cases) {
    const ProgressiveRoundingOptions rounding = Parsed(c.options).rounding;
    EXPECT_EQ(rounding.steps_per_stage, c.steps) << c.options;
    EXPECT_DOUBLE_EQ(rounding.rates.rounding, c.rate) << c.options;
    EXPECT_DOUBLE_EQ(rounding.rates.scale, c.rate) << c.options;
    EXPECT_EQ(rounding.schedule.size(), 20u) << c.options;
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
      {R"({"recipe": "tesseraq-plus"})", 200, 0.01, 0.003},
      {R"({"recipe": "tesseraq-plus", "disable_scale_tuning": true})", 200, 0, 0.003},
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

TEST(TesseraqOptionsTest, AShortRecipeTakesNoBudget) {
  for (const char* budget : {"BUDGET_FULL", "BUDGET_BALANCED", "BUDGET_FAST"}) {
    const std::string options =
        std::string(R"({"recipe": "tesseraq-plus", "budget": ")") + budget + "\"}";
    const EngineError error = test::ErrorOf([&] { Parsed(options.c_str()); });
    EXPECT_EQ(error.reason, "INVALID_SPEC");
    EXPECT_TRUE(test::Mentions(error, "tesseraq.budget")) << error.what();
  }
}

}  // namespace
}  // namespace quantry::engine
