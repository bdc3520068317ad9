#include "worker/engine/methods/tesseraq/options.h"

#include <algorithm>
#include <cmath>

#include "worker/engine/base/error.h"
#include "worker/engine/base/json_object.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/methods/catalog.h"
#include "worker/engine/reconstruct/rounding_schedule.h"
#include "worker/engine/reconstruct/rounding_window.h"

namespace quantry::engine {
namespace {

// More stages or steps than this only cost time.
constexpr int64_t kMaxStages = 1000;
constexpr int64_t kMaxSteps = 1000000;
constexpr int64_t kMaxBatch = 4096;
constexpr int64_t kMaxHeldOut = 1000000;
constexpr double kDefaultDecay = 1e-4;
// Steps that tune the ranges of the SignRound start: 200, as the method of its own takes, bring
// no more.
constexpr int kRangeSteps = 50;

// The recipe's, of what the message leaves to it.
TesseraqBudget ParseBudget(JsonObject& options, const TesseraqRecipe& recipe, RoundingInit init) {
  const int budget = options.Choice(
      "budget", {"BUDGET_UNSPECIFIED", "BUDGET_FULL", "BUDGET_BALANCED", "BUDGET_FAST"}, 0);
  const TesseraqBudget& result =
      recipe.budgets.at(budget == 0 ? recipe.default_budget : budget - 1);
  const bool tuning_given =
      result.tuning_steps == 0 || options.Int("model_tuning_steps", 0, -1, kMaxSteps) != 0;
  const bool searches_alike =
      init != RoundingInit::kAwq ||
      result.awq_search_tokens == recipe.budgets.at(recipe.default_budget).awq_search_tokens;
  if (options.Int("steps_per_stage", 0, 0, kMaxSteps) > 0 && options.Has("learning_rate") &&
      tuning_given && searches_alike) {
    options.RefuseIdle({"budget"}, result.tuning_steps == 0
                                       ? "with both steps_per_stage and learning_rate given (leave "
                                         "one of the three out)"
                                       : "with steps_per_stage, learning_rate and "
                                         "model_tuning_steps given (leave one of the four out)");
  }
  return result;
}

RoundingInit ParseInit(JsonObject& options, RoundingInit otherwise) {
  switch (options.Choice("init",
                         {"INIT_UNSPECIFIED", "INIT_NONE", "INIT_AWQ", "INIT_OMNIQUANT",
                          "INIT_QUAROT", "INIT_SIGNROUND"},
                         0)) {
    case 1:
      return RoundingInit::kNone;
    case 2:
      return RoundingInit::kAwq;
    case 3:
      return RoundingInit::kOmniquant;
    case 4:
      return RoundingInit::kQuarot;
    case 5:
      return RoundingInit::kSignround;
    default:
      return otherwise;
  }
}

const TesseraqRecipe* FindRecipe(JsonObject& options) {
  const std::string name = options.String("recipe", "");
  if (name.empty()) return nullptr;
  std::vector<std::string> known;
  for (const TesseraqRecipe& recipe : TesseraqRecipes()) {
    if (recipe.name == name) return &recipe;
    known.push_back(recipe.name);
  }
  options.Refuse("recipe", StrCat("one of ", Join(known, known.size())));
}

std::vector<double> ParseSchedule(JsonObject& options, int default_stages) {
  const int64_t stages = options.Int("stages", 0, 0, kMaxStages);
  std::vector<double> schedule = options.Numbers("schedule");
  if (schedule.empty()) return ScheduleOf(stages == 0 ? default_stages : static_cast<int>(stages));
  if (stages != 0) options.Refuse("stages", "left out when schedule is given");
  if (schedule.size() > static_cast<size_t>(kMaxStages)) {
    options.Refuse("schedule", StrCat("at most ", kMaxStages, " stages"));
  }
  CheckSchedule(schedule);
  return schedule;
}

StepRates ParseRates(JsonObject& options, double default_rate) {
  StepRates rates;
  rates.rounding = options.Positive("learning_rate", default_rate);
  rates.scale = options.Positive("scale_learning_rate", rates.rounding);
  const double decay = options.NumberOrNone("scale_weight_decay");
  rates.scale_weight_decay = decay == 0 ? kDefaultDecay : std::max(decay, 0.0);
  rates.tune_scale = !options.Bool("disable_scale_tuning", false);
  if (!rates.tune_scale) {
    options.RefuseIdle(
        {"scale_learning_rate", "scale_weight_decay", "scale_curve", "model_tuning_rate"},
        "with disable_scale_tuning (leave one of the two out)");
  }
  if (options.Number("rounding_weight_decay", 0, -1e30) != 0) {
    options.Refuse("rounding_weight_decay",
                   "0 (decay pulls decided roundings back and turns hardened ones into NaN)");
  }
  return rates;
}

// Of a message that names none: the defaults.
TesseraqRecipe TesseraqRecipeOf(JsonObject& options) {
  const TesseraqRecipe* named = FindRecipe(options);
  return named == nullptr ? TesseraqRecipe() : *named;
}

// What the message says, else the recipe for such activations.
RoundingInit InitOf(JsonObject& options, const ActivationSpec& activations) {
  const TesseraqRecipe recipe = TesseraqRecipeOf(options);
  const bool few = activations.bits <= kFewActivationBits;
  return ParseInit(options,
                   few ? recipe.init_of_few_activation_bits.value_or(recipe.init) : recipe.init);
}

}  // namespace

GridSpec ParseTesseraqGrid(JsonObject& options) {
  const TesseraqRecipe* recipe = FindRecipe(options);
  if (recipe == nullptr) return ParseGrid(options);
  const GridSpec wanted = recipe->grid.value_or(GridSpec());
  const GridSpec grid = ParseGrid(options, wanted);
  if (!recipe->grid) return grid;
  if (grid.bits == wanted.bits && grid.group_size == wanted.group_size) return grid;
  options.Refuse("grid", StrCat("left out, or ", wanted.bits, " bits and group size ",
                                wanted.group_size, " as recipe ", recipe->name, " has it"));
}

// Tuning of the whole model: the recipe's unless the message says otherwise.
// `scales`: whether they are tuned at all.
ModelTuningOptions ParseTuning(JsonObject& options, ModelTuningOptions tuning, bool scales) {
  const int64_t steps = options.Int("model_tuning_steps", 0, -1, kMaxSteps);
  if (steps != 0) tuning.steps = std::max<int64_t>(steps, 0);
  if (tuning.steps == 0) {
    options.RefuseIdle({"model_tuning_rate", "model_tuning_dense_rate"},
                       "without model_tuning_steps (set them or leave it out)");
  }
  tuning.scale_rate = options.Positive("model_tuning_rate", tuning.scale_rate);
  const double dense_rate = options.NumberOrNone("model_tuning_dense_rate");
  if (dense_rate != 0) tuning.dense_rate = std::max(dense_rate, 0.0);
  if (scales) return tuning;
  tuning.scale_rate = 0;
  if (tuning.dense_rate > 0) return tuning;
  if (steps > 0) {
    options.RefuseIdle(
        {"model_tuning_steps"},
        "with disable_scale_tuning and no model_tuning_dense_rate (set that or leave "
        "one of the two out)");
  }
  tuning.steps = 0;
  return tuning;
}

ActivationSpec TesseraqActivations(JsonObject& options) {
  const TesseraqRecipe* recipe = FindRecipe(options);
  ActivationSpec spec;
  if (recipe == nullptr) return spec;
  spec.bits = recipe->activation_bits;
  if (!recipe->fixes_activations()) return spec;
  if (ParseActivations(options, spec).bits == spec.bits) return spec;
  options.Refuse("activations",
                 StrCat("left out, or ", spec.bits, " bits as recipe ", recipe->name, " has it"));
}

RotationSpec TesseraqRotation(JsonObject& options, const ActivationSpec& activations) {
  if (InitOf(options, activations) != RoundingInit::kQuarot) return {};
  return {true, activations.enabled()};
}

TesseraqOptions ParseTesseraqOptions(JsonObject& options) {
  const TesseraqRecipe recipe = TesseraqRecipeOf(options);
  TesseraqOptions result;
  result.init = InitOf(options, ParseActivations(options, TesseraqActivations(options)));
  const GridSpec grid = ParseTesseraqGrid(options);
  result.bits = grid.bits;
  result.group_size = grid.group_size;
  const TesseraqBudget budget = ParseBudget(options, recipe, result.init);
  result.awq.search_tokens = budget.awq_search_tokens;
  result.signround.iterations = kRangeSteps;
  result.rounding.schedule = ParseSchedule(options, recipe.stages);
  const int64_t steps = options.Int("steps_per_stage", 0, 0, kMaxSteps);
  result.rounding.steps_per_stage = steps > 0 ? steps : budget.steps_per_stage;
  const int64_t batch = options.Int("batch_size", 0, 0, kMaxBatch);
  if (batch > 0) result.rounding.batch_size = batch;
  result.rounding.whole_epochs = options.Bool("whole_epochs", false);
  result.repeat_worse_stages = options.Bool("repeat_worse_stages", recipe.repeat_worse_stages);
  result.rounding.held_out = options.Int("held_out_samples", 0, 0, kMaxHeldOut);
  const int64_t reach = options.Int("rounding_reach", 0, 0, RoundingWindow::kMaxReach);
  if (reach > 0) result.rounding_reach = static_cast<int>(reach);
  result.rounding.rates = ParseRates(options, budget.learning_rate);
  result.rounding.dense_rate = options.Number("dense_learning_rate", 0, 0);
  if (!result.rounding.rates.tune_scale && result.rounding.dense_rate == 0) {
    options.RefuseIdle({"final_steps"},
                       "with disable_scale_tuning and no dense_learning_rate, as the roundings are "
                       "decided by then (leave it or disable_scale_tuning out)");
  }
  result.rounding.final_steps = options.Int("final_steps", 0, 0, kMaxSteps);
  const double share = options.Number("final_rate_share", 0, 0);
  if (share > 1) options.Refuse("final_rate_share", "at most 1 (left out = 1)");
  if (share > 0) result.rounding.final_rate_share = share;
  if (options.Choice(
          "scale_curve",
          {"SCALE_CURVE_UNSPECIFIED", "SCALE_CURVE_RECTIFIED_SIGMOID", "SCALE_CURVE_EXPONENTIAL"},
          0) == 2) {
    result.scale_curve = ScaleCurve::kExponential;
  }
  ModelTuningOptions tuning = recipe.tuning;
  tuning.steps = budget.tuning_steps;
  if (recipe.halves_tuning_rate) tuning.scale_rate = std::ldexp(tuning.scale_rate, 2 - grid.bits);
  result.tuning = ParseTuning(options, tuning, result.rounding.rates.tune_scale);
  result.tuning.batch_size = result.rounding.batch_size;
  result.compute = ParseComputeDtype(options, recipe.compute);
  result.tuning.compute = result.signround.compute = result.compute;
  result.input_mixing = options.Number("input_mixing", 0, 0);
  if (result.input_mixing > 1) options.Refuse("input_mixing", "a probability, 0 to 1");
  result.token_energy_limit = ParseTokenEnergyLimit(options, recipe.token_energy_limit);
  result.signround.token_energy_limit = result.token_energy_limit;
  result.omniquant.token_energy_limit = result.token_energy_limit;
  if (FindRecipe(options) != nullptr) result.calibration = recipe.calibration;
  return result;
}

}  // namespace quantry::engine
