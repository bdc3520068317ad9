#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "worker/engine/methods/awq/awq.h"
#include "worker/engine/methods/method.h"
#include "worker/engine/methods/omniquant/omniquant.h"
#include "worker/engine/methods/quarot/rotation.h"
#include "worker/engine/methods/signround/signround.h"
#include "worker/engine/reconstruct/model_tuning.h"
#include "worker/engine/reconstruct/progressive_rounding.h"
#include "worker/engine/reconstruct/soft_rounding.h"

namespace quantry::engine {

class JsonObject;

// What progressive rounding starts from (spec: tesseraq.md 1).
enum class RoundingInit { kNone, kAwq, kOmniquant, kQuarot, kSignround };

// TesseraqMethod of method.proto with recipe and defaults filled in.
struct TesseraqOptions {
  RoundingInit init = RoundingInit::kAwq;
  AwqOptions awq;
  OmniquantOptions omniquant;
  SignroundOptions signround;
  int bits = 4;              // of the grid: they decide how long OmniQuant trains
  int64_t group_size = 128;  // of the grid: memory goes with the number of groups
  ProgressiveRoundingOptions rounding;
  double input_mixing = 0;        // see BlockObjective::MixInputs
  double token_energy_limit = 0;  // see BlockObjective::LimitTokens
  ScaleCurve scale_curve = ScaleCurve::kRectifiedSigmoid;
  int rounding_reach = 1;  // see RoundingWindow
  // ProgressiveRoundingOptions::most_loss is the loss of the start.
  bool repeat_worse_stages = false;
  ModelTuningOptions tuning;
  ComputeChoice compute = ComputeDtype::kFloat32;  // of training's products
  StreamShape calibration;                         // what the recipe was made for
};

// How long a job trains, by `budget`.
struct TesseraqBudget {
  int64_t steps_per_stage;
  double learning_rate;
  int64_t tuning_steps;       // of the whole model
  int64_t awq_search_tokens;  // see AwqOptions::search_tokens
};

// Fewer than the 8 bits that common engines quantize activations to.
constexpr int kFewActivationBits = 6;

// One row of the recipes (docs/methods/tesseraq.md): what the other fields of
// the message leave open.
struct TesseraqRecipe {
  std::string name;
  std::string summary;
  std::optional<GridSpec> grid;  // absent: any
  int activation_bits = 16;      // 16: the method's `activations` may say otherwise
  int stages = 20;
  // Full, balanced, fast: a whole, a fifth, a tenth of the published steps at equal rate x steps.
  // Of the AWQ start's search in short schedules the published number would take half.
  std::array<TesseraqBudget, 3> budgets = {
      {{250, 1e-3, 0, 65536}, {50, 5e-3, 0, 8192}, {25, 1e-2, 0, 8192}}};
  int default_budget = 0;  // index into them
  StreamShape calibration = {512, 2048};
  ModelTuningOptions tuning = {};  // but for its steps
  // Its rate of scales is that of 2 bits and half of it for each further bit: a finer grid has
  // less far to go.
  bool halves_tuning_rate = false;
  ComputeChoice compute = ComputeDtype::kFloat32;
  bool repeat_worse_stages = false;
  double token_energy_limit = 0;
  RoundingInit init = RoundingInit::kAwq;
  std::optional<RoundingInit> init_of_few_activation_bits = {};  // of kFewActivationBits at most

  bool fixes_activations() const { return activation_bits < 16; }
};

const std::vector<TesseraqRecipe>& TesseraqRecipes();

// The method's grid: the recipe's where one is named. Throws INVALID_SPEC when
// both are given and differ.
GridSpec ParseTesseraqGrid(JsonObject& options);

// The recipe's activations. Throws INVALID_SPEC when both say what they are and
// differ.
ActivationSpec TesseraqActivations(JsonObject& options);
// INIT_QUAROT rotates the model first.
RotationSpec TesseraqRotation(JsonObject& options, const ActivationSpec& activations);

// Everything but the grid. Throws INVALID_SPEC naming the field.
TesseraqOptions ParseTesseraqOptions(JsonObject& options);

}  // namespace quantry::engine
