#include "worker/engine/methods/ptq161/parse.h"

#include <algorithm>
#include <utility>

#include "worker/engine/base/json_object.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/methods/ptq161/ptq161.h"

namespace quantry::engine {
namespace {

constexpr double kMostSalient = 0.5;
constexpr int64_t kMostEpochs = 10'000;
constexpr int64_t kMostStages = 1000;
constexpr int64_t kMostSteps = 1'000'000;
constexpr int64_t kMostMultiple = 4096;

// A positive number; 0 and absence leave `value` alone.
void Override(JsonObject& options, const std::string& name, double& value) {
  const double given = options.Number(name, 0, 0);
  if (given > 0) value = given;
}

Ptq161Options Plus() {
  Ptq161Options plus;
  plus.statistic = Ptq161Options::Statistic::kSensitivity;
  plus.learn_rounding = true;
  plus.rounding_rate = 3e-2;
  plus.epochs = 2;  // little is left for the gains
  plus.token_energy_limit = 300;
  return plus;
}

// What a recipe decides; the other fields override it. The first is the default.
const std::vector<std::pair<std::string, Ptq161Options>>& Recipes() {
  static const std::vector<std::pair<std::string, Ptq161Options>> table = {
      {"ptq161", Ptq161Options()}, {"ptq161-plus", Plus()}};
  return table;
}

Ptq161Options RecipeOf(JsonObject& options) {
  const std::string name = options.String("recipe", "");
  if (name.empty()) return Recipes().front().second;
  for (const auto& [known, recipe] : Recipes()) {
    if (known == name) return recipe;
  }
  options.Refuse("recipe", StrCat("one of ", Join(Ptq161Recipes())));
}

void ParseLearnedRounding(JsonObject& options, Ptq161Options& parsed) {
  parsed.learn_rounding = options.Bool("learn_rounding", false) || parsed.learn_rounding;
  if (!parsed.learn_rounding) {
    options.RefuseIdle({"rounding_stages", "rounding_steps", "rounding_batch", "rounding_rate",
                        "rounding_scale_rate"},
                       "without learn_rounding (set that or leave it out)");
  }
  const auto count = [&](const std::string& name, int64_t fallback, int64_t most) {
    const int64_t given = options.Int(name, 0, 0, most);
    return given > 0 ? given : fallback;
  };
  parsed.rounding_stages =
      static_cast<int>(count("rounding_stages", parsed.rounding_stages, kMostStages));
  parsed.rounding_steps = count("rounding_steps", parsed.rounding_steps, kMostSteps);
  parsed.rounding_batch = count("rounding_batch", parsed.rounding_batch, kMostSteps);
  parsed.rounding_rate = options.Positive("rounding_rate", parsed.rounding_rate);
  parsed.rounding_scale_rate = options.Positive("rounding_scale_rate", parsed.rounding_scale_rate);
}

void ParseMask(JsonObject& options, Ptq161Options& parsed) {
  parsed.mask = !options.Bool("disable_mask", false);
  if (!parsed.mask) {
    options.RefuseIdle({"salient_ratio", "statistic", "exact_top_k", "salient_multiple",
                        "salient_grid", "first_pass_mask"},
                       "with disable_mask: no column is salient (leave one of the two out)");
  }
  parsed.salient_ratio = options.Positive("salient_ratio", parsed.salient_ratio);
  if (parsed.salient_ratio > kMostSalient) {
    options.Refuse("salient_ratio",
                   StrCat("above 0 and at most ", kMostSalient, " (left out = default, 0.2)"));
  }
  const int statistic = options.Choice(
      "statistic",
      {"STATISTIC_UNSPECIFIED", "STATISTIC_MAX", "STATISTIC_MEAN", "STATISTIC_SENSITIVITY"}, 0);
  if (statistic == 1) parsed.statistic = Ptq161Options::Statistic::kMax;
  if (statistic == 2) parsed.statistic = Ptq161Options::Statistic::kMean;
  if (statistic == 3) parsed.statistic = Ptq161Options::Statistic::kSensitivity;
  parsed.exact_top_k = options.Bool("exact_top_k", false);
  parsed.salient_grid = options.Bool("salient_grid", false);
  parsed.first_pass_mask = options.Bool("first_pass_mask", false);
  parsed.salient_multiple = options.Int("salient_multiple", 0, 0, kMostMultiple);
  if (parsed.salient_multiple == 1) {
    options.Refuse("salient_multiple", "0 or at least 2: every number is a multiple of 1");
  }
}

// After learn_rounding: learned signs train r2 as well.
void ParseTraining(JsonObject& options, Ptq161Options& parsed) {
  parsed.centered_gain = options.Bool("centered_gain", false);
  parsed.relative_gain = options.Bool("relative_gain", false);
  parsed.shuffle = options.Bool("shuffle", false);
  const int64_t epochs = options.Int("epochs", 0, 0, kMostEpochs);
  if (epochs > 0) parsed.epochs = static_cast<int>(epochs);
  if (options.Bool("disable_training", false)) {
    const std::string why = "with disable_training (leave one of the two out)";
    options.RefuseIdle({"epochs", "gain_rate", "relative_gain", "shuffle", "mse_weight",
                        "cosine_weight", "disable_cosine", "token_cosine", "stop_improvement"},
                       why);
    if (!parsed.learn_rounding) {
      options.RefuseIdle({"rank_one_rate", "compute_dtype", "token_energy_limit"}, why);
    }
    parsed.epochs = 0;
  }
  const bool cosine = !options.Bool("disable_cosine", false);
  if (!cosine) {
    // Adam's steps do not depend on the size of a loss of one term.
    options.RefuseIdle({"mse_weight", "cosine_weight", "token_cosine"},
                       "with disable_cosine (leave one of the two out)");
  }
  if (parsed.epochs == 1) {
    options.RefuseIdle({"stop_improvement"},
                       "with one epoch, which has none to be compared with (ask for more epochs "
                       "or leave it out)");
  }
  parsed.gain_rate = options.Positive("gain_rate", parsed.gain_rate);
  parsed.rank_one_rate = options.Positive("rank_one_rate", parsed.rank_one_rate);
  Override(options, "mse_weight", parsed.mse_weight);
  Override(options, "cosine_weight", parsed.cosine_weight);
  if (!cosine) parsed.cosine_weight = 0;
  parsed.token_energy_limit = ParseTokenEnergyLimit(options, parsed.token_energy_limit);
  parsed.token_cosine = options.Bool("token_cosine", false);
  Override(options, "stop_improvement", parsed.stop_improvement);
  if (parsed.stop_improvement >= 1) {
    options.Refuse("stop_improvement", "0 (never) or a share below 1");
  }
}

}  // namespace

Ptq161Options ParsePtq161(JsonObject& options) {
  Ptq161Options parsed = RecipeOf(options);
  ParseMask(options, parsed);
  ParseLearnedRounding(options, parsed);
  ParseTraining(options, parsed);
  parsed.compute = ParseComputeDtype(options, parsed.compute).value();
  return parsed;
}

std::vector<std::string> Ptq161Recipes() {
  std::vector<std::string> names;
  for (const auto& [name, recipe] : Recipes()) names.push_back(name);
  return names;
}

std::unique_ptr<Method> CreatePtq161(JsonObject& options) {
  return std::make_unique<Ptq161>(ParsePtq161(options));
}

std::vector<ParameterRow> Ptq161Parameters() {
  return {
      {"recipe", "string", "\"ptq161\"",
       "ptq161: the authors' code; ptq161-plus: what measured better."},
      {"salient_ratio", "double", "0.2", "Share of the columns kept in 4 bits, at most 0.5."},
      {"disable_mask", "bool", "false", "No salient columns: a sign for every weight."},
      {"statistic", "enum", "\"STATISTIC_MAX\"",
       "What makes a column salient: STATISTIC_MAX or STATISTIC_MEAN of its inputs' size, or "
       "STATISTIC_SENSITIVITY, the output error 4 bits save (ptq161-plus)."},
      {"exact_top_k", "bool", "false",
       "Exactly floor(ratio * in) columns; without it one more, and ties."},
      {"salient_multiple", "int32", "0",
       "Promote the next columns until their number is a multiple of this."},
      {"salient_grid", "bool", "false",
       "Fit the 4-bit range to the salient columns instead of the whole row."},
      {"first_pass_mask", "bool", "false",
       "With preprocessing: the first pass's salient columns again."},
      {"centered_gain", "bool", "false", "Start from mean |W - mu| instead of mean |W|."},
      {"epochs", "int32", "20",
       "Passes over the calibration windows for each block. ptq161-plus: 2."},
      {"disable_training", "bool", "false", "Keep the analytic gains."},
      {"gain_rate", "double", "0.0005", "Learning rate of the row gains alpha."},
      {"rank_one_rate", "double", "0.001", "Learning rate of the rank-one gains r1 and r2."},
      {"relative_gain", "bool", "false", "Train alpha relative to where it starts."},
      {"shuffle", "bool", "false", "A new order of the windows every epoch."},
      {"mse_weight", "double", "1", "Weight of the squared errors in the loss."},
      {"cosine_weight", "double", "1", "Weight of the cosine terms in the loss."},
      {"disable_cosine", "bool", "false", "Leave the cosine terms out."},
      {"token_cosine", "bool", "false", "Mean of the tokens' -log cos, not -log of their mean."},
      {"token_energy_limit", "double", "0",
       "Tokens of more than so many times the median energy count in the squared errors as if they "
       "had that; -1 = none. ptq161-plus: 300."},
      {"stop_improvement", "double", "0",
       "End a block after an epoch that lowers its loss by a smaller share than this."},
      {"learn_rounding", "bool", "false",
       "Learn signs and 4-bit codes by progressive rounding before the gains. ptq161-plus: true."},
      {"rounding_stages", "int32", "20", "Stages of hardening signs and codes."},
      {"rounding_steps", "int32", "32", "Adam steps of a stage."},
      {"rounding_batch", "int32", "4", "Calibration windows a step."},
      {"rounding_rate", "double", "0.01", "Rate of the rounding logits. ptq161-plus: 0.03."},
      {"rounding_scale_rate", "double", "0.01", "Rate of the row scales meanwhile."},
      {"compute_dtype", "enum", "\"COMPUTE_DTYPE_FLOAT32\"",
       "COMPUTE_DTYPE_BFLOAT16: the products of training steps in bfloat16."}};
}

}  // namespace quantry::engine
