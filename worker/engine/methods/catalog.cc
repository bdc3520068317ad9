#include "worker/engine/methods/catalog.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "worker/engine/base/json_object.h"
#include "worker/engine/methods/awq/awq.h"
#include "worker/engine/methods/billm/billm.h"
#include "worker/engine/methods/pbllm/pbllm.h"
#include "worker/engine/methods/ptq161/parse.h"
#include "worker/engine/methods/restore/restore.h"
#include "worker/engine/methods/rows.h"
#include "worker/engine/methods/rtn/rtn.h"
#include "worker/engine/methods/tesseraq/options.h"
#include "worker/engine/methods/tesseraq/tesseraq.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {
namespace {

// More candidates than this only cost time.
constexpr int64_t kMaxScaleGridPoints = 1000;

std::unique_ptr<Method> CreateRtn(JsonObject&) { return std::make_unique<Rtn>(); }

std::unique_ptr<Method> CreateAwq(JsonObject& options) {
  AwqOptions awq;
  awq.search_scales = !options.Bool("disable_scale_search", false);
  awq.search_clip = !options.Bool("disable_clip_search", false);
  if (!awq.search_scales) {
    options.RefuseIdle({"scale_grid_points"},
                       "with disable_scale_search (leave one of the two out)");
  }
  const int64_t points = options.Int("scale_grid_points", 0, 0, kMaxScaleGridPoints);
  if (points > 0) awq.scale_grid_points = static_cast<int>(points);
  awq.group_size = ParseGrid(options).group_size;
  return std::make_unique<Awq>(awq);
}

MethodRow RtnRow() {
  return {"rtn",
          "Round to nearest on the min/max grid; uses no data.",
          CommonBits(),
          false,
          CommonFormats(),
          "docs/methods/rtn.md",
          GridParameters(),
          CreateRtn};
}

MethodRow AwqRow() {
  MethodRow row = {"awq",
                   "Activation-aware scale search and clip search, then rounding to nearest.",
                   CommonBits(),
                   true,
                   CommonFormats(),
                   "Lin et al., arXiv 2306.00978",
                   GridParameters(),
                   CreateAwq};
  row.parameters.push_back(
      {"disable_scale_search", "bool", "false", "Skip the per-channel scale search."});
  row.parameters.push_back({"disable_clip_search", "bool", "false", "Skip the clip search."});
  row.parameters.push_back({"scale_grid_points", "int32", "20",
                            "Candidates of the scale exponent, ratio = n / points."});
  return row;
}

std::unique_ptr<Method> CreateTesseraq(JsonObject& options) {
  return std::make_unique<Tesseraq>(ParseTesseraqOptions(options));
}

MethodRow TesseraqRow() {
  MethodRow row = {
      "tesseraq",
      "Learned rounding, hardened step by step, with tuned scales; made for 2 to 4 bits.",
      CommonBits(),
      true,
      CommonFormats(),
      "Li and Panda, arXiv 2410.19103",
      GridParameters(),
      CreateTesseraq,
      ParseTesseraqGrid};
  const std::vector<ParameterRow> own = {
      {"recipe", "string", "\"\"", "Settings under one name: tesseraq-w2g128, tesseraq-w2g64, ..."},
      {"init", "enum", "\"INIT_AWQ\"",
       "Start: INIT_NONE, INIT_AWQ, INIT_OMNIQUANT, INIT_QUAROT, INIT_SIGNROUND. tesseraq-plus: "
       "INIT_SIGNROUND, with 6 activation bits or fewer INIT_QUAROT."},
      {"stages", "int32", "20", "Stages of hardening."},
      {"schedule", "list of double", "[]", "Soft fraction left after each stage, falling."},
      {"steps_per_stage", "int32", "250", "Adam steps of a stage. tesseraq-plus: 8."},
      {"learning_rate", "double", "0.001", "Rate of the rounding logits. tesseraq-plus: 0.04."},
      {"scale_learning_rate", "double", "0.001", "Rate of the scale logits. tesseraq-plus: 0.04."},
      {"scale_weight_decay", "double", "0.0001", "L2 decay of the scale logits; -1 = none."},
      {"batch_size", "int32", "4", "Calibration windows a step."},
      {"disable_scale_tuning", "bool", "false", "Leave the scales as the grid has them."},
      {"budget", "enum", "\"BUDGET_FULL\"",
       "BUDGET_BALANCED and BUDGET_FAST take a fifth and a tenth of the steps; tesseraq-plus: "
       "BUDGET_FAST unless told otherwise."},
      {"dense_learning_rate", "double", "0", "Rate of norms and biases in the blocks; 0 = frozen."},
      {"final_steps", "int32", "0", "Steps after the last hardening, for scales and norms."},
      {"final_rate_share", "double", "1", "Rates fall linearly to this share."},
      {"scale_curve", "enum", "\"SCALE_CURVE_RECTIFIED_SIGMOID\"",
       "SCALE_CURVE_EXPONENTIAL cannot saturate."},
      {"input_mixing", "double", "0", "Probability of a token's input from the original chain."},
      {"model_tuning_steps", "int32", "0",
       "Steps over the whole model after all blocks. tesseraq-plus: 100."},
      {"model_tuning_rate", "double", "0.003",
       "Rate of the scales' logarithms there. tesseraq-plus: 0.01 at 2 bits, half of that for each "
       "further bit."},
      {"model_tuning_dense_rate", "double", "0",
       "Rate of norms and biases there. tesseraq-plus: 0.003."},
      {"rounding_reach", "int32", "1", "Steps of the grid a rounding may go: 1 or 2."},
      {"whole_epochs", "bool", "false", "Batches take every window once before any comes again."},
      {"repeat_worse_stages", "bool", "false",
       "Train a stage again at half the rates where its loss is above the start's, or far "
       "above the stage's before. "
       "tesseraq-plus: true."},
      {"token_energy_limit", "double", "0",
       "Tokens of more than so many times the median energy count in the losses as if they had "
       "that; -1 = none. tesseraq-plus: 300."},
      {"held_out_samples", "int32", "0", "Calibration windows that judge each block's rounding."},
      {"compute_dtype", "enum", "\"COMPUTE_DTYPE_FLOAT32\"",
       "COMPUTE_DTYPE_BFLOAT16: the products of training steps in bfloat16. "
       "tesseraq-plus: that where a CPU multiplies it."},
  };
  row.parameters.insert(row.parameters.end(), own.begin(), own.end());
  row.rotation = TesseraqRotation;
  row.default_activations = TesseraqActivations;
  for (const TesseraqRecipe& recipe : TesseraqRecipes()) {
    const GridSpec grid = recipe.grid.value_or(GridSpec{.bits = 0, .group_size = 0});
    row.recipes.push_back({recipe.name, grid.bits, grid.group_size,
                           recipe.fixes_activations() ? recipe.activation_bits : 0,
                           recipe.calibration});
  }
  return row;
}

GridSpec ReferenceGrid(JsonObject&) { return kReferenceGrid; }

MethodRow Ptq161Row() {
  MethodRow row = {
      "ptq161",
      "1.61 bits: 4-bit salient columns, a sign for every other weight, trained gains.",
      {},
      true,
      {"quantry", "dense"},
      "Zhao et al., arXiv 2502.13179",
      Ptq161Parameters(),
      CreatePtq161,
      ReferenceGrid};
  row.weights = WeightKind::kMixedBinary;
  for (const std::string& name : Ptq161Recipes()) row.recipes.push_back({name});
  return row;
}

MethodRow BillmRow() {
  MethodRow row = {"billm",
                   "BiLLM, a baseline: columns binarized twice, other weights in two groups a row.",
                   {},
                   true,
                   {"dense"},
                   "Huang et al., arXiv 2402.04291",
                   BillmParameters(),
                   CreateBillm,
                   ReferenceGrid};
  row.weights = WeightKind::kValues;
  return row;
}

MethodRow PbllmRow() {
  MethodRow row = {"pbllm",
                   "PB-LLM without training, a baseline: salient weights in 8 bits, a sign for the "
                   "others.",
                   {},
                   true,
                   {"dense"},
                   "Shang et al., arXiv 2310.00034",
                   PbllmParameters(),
                   CreatePbllm,
                   ReferenceGrid};
  row.weights = WeightKind::kValues;
  return row;
}

MethodRow RestoreRow() {
  MethodRow row = {"restore",
                   "No quantization: the model that preprocessing restores, as a checkpoint that "
                   "quantizes better.",
                   {},
                   true,
                   {"dense"},
                   "Zhao et al., arXiv 2502.13179, section 3.3",
                   RestoreParameters(),
                   CreateRestore,
                   ReferenceGrid};
  row.weights = WeightKind::kValues;
  for (const std::string& name : Ptq161Recipes())
    row.recipes.push_back({name});  // its first pass's
  return row;
}

nlohmann::json ParametersJson(const std::vector<ParameterRow>& parameters) {
  nlohmann::json json = nlohmann::json::array();
  for (const ParameterRow& row : parameters) {
    json.push_back({{"name", row.name},
                    {"type", row.type},
                    {"default_value", row.default_value},
                    {"description", row.description}});
  }
  return json;
}

nlohmann::json RecipesJson(const std::vector<RecipeRow>& recipes) {
  nlohmann::json json = nlohmann::json::array();
  for (const RecipeRow& row : recipes) {
    json.push_back({{"name", row.name},
                    {"bits", row.bits},
                    {"group_size", row.group_size},
                    {"activation_bits", row.activation_bits},
                    {"samples", row.calibration.windows},
                    {"sequence_length", row.calibration.length}});
  }
  return json;
}

}  // namespace

std::span<const MethodRow> Methods() {
  static const std::vector<MethodRow> table = {WithActivations(RtnRow()),
                                               WithActivations(AwqRow()),
                                               WithActivations(TesseraqRow()),
                                               WithActivations(GptqRow()),
                                               WithActivations(OmniquantRow()),
                                               WithActivations(QuarotRow()),
                                               WithActivations(SignroundRow()),
                                               Ptq161Row(),
                                               BillmRow(),
                                               PbllmRow(),
                                               RestoreRow()};
  return table;
}

const MethodRow* FindMethod(const std::string& name) {
  for (const MethodRow& row : Methods()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

GridSpec ParseGrid(JsonObject& options, const GridSpec& defaults) {
  GridSpec grid = defaults;
  if (std::optional<JsonObject> object = options.Object("grid")) {
    grid.bits = static_cast<int>(object->Int("bits", defaults.bits, INT32_MIN, INT32_MAX));
    const int64_t size = object->Int("group_size", 0, -1, kMaxGroupSize);
    if (size != 0) grid.group_size = size;
    grid.symmetric = object->Bool("symmetric", defaults.symmetric);
    grid.zero_at_least_one = object->Bool("zero_point_at_least_one", defaults.zero_at_least_one);
    if (grid.symmetric) {
      object->RefuseIdle({"zero_point_at_least_one"},
                         "with a symmetric grid, whose zero point is fixed (leave one of the two "
                         "out)");
    }
    object->Finish();
  }
  CheckGrid(grid, {});
  return grid;
}

ActivationSpec ParseActivations(JsonObject& options, const ActivationSpec& defaults) {
  ActivationSpec spec = defaults;
  if (std::optional<JsonObject> object = options.Object("activations")) {
    const int64_t bits = object->Int("bits", 0, INT32_MIN, INT32_MAX);
    if (bits != 0) spec.bits = static_cast<int>(bits);
    object->Finish();
  }
  CheckActivations(spec);
  return spec;
}

ComputeChoice ParseComputeDtype(JsonObject& options, ComputeChoice of_recipe) {
  const int choice = options.Choice(
      "compute_dtype",
      {"COMPUTE_DTYPE_UNSPECIFIED", "COMPUTE_DTYPE_FLOAT32", "COMPUTE_DTYPE_BFLOAT16"}, 0);
  if (choice == 0) return of_recipe;
  return choice == 2 ? ComputeDtype::kBfloat16 : ComputeDtype::kFloat32;
}

double ParseTokenEnergyLimit(JsonObject& options, double of_recipe) {
  const double limit = options.NumberOrNone("token_energy_limit");
  return limit == 0 ? of_recipe : std::max(limit, 0.0);
}

RotationSpec ParseRotation(JsonObject& options, const ActivationSpec& activations) {
  RotationSpec spec{true, activations.enabled()};
  if (std::optional<JsonObject> object = options.Object("rotation")) {
    if (object->Has("online")) spec.online = object->Bool("online", false);
    object->Finish();
  }
  return spec;
}

nlohmann::json MethodsJson() {
  nlohmann::json methods = nlohmann::json::array();
  for (const MethodRow& row : Methods()) {
    methods.push_back({{"name", row.name},
                       {"summary", row.summary},
                       {"bits", row.bits},
                       {"needs_calibration", row.needs_calibration},
                       {"output_formats", row.output_formats},
                       {"reference", row.reference},
                       {"parameters", ParametersJson(row.parameters)},
                       {"recipes", RecipesJson(row.recipes)}});
  }
  return {{"methods", methods}};
}

}  // namespace quantry::engine
