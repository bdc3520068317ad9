#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/methods/quarot/rotation.h"

namespace quantry::engine {

class JsonObject;

// A parameter as MethodDescription in method.proto shows it.
struct ParameterRow {
  std::string name;           // path in the method's message: "grid.bits"
  std::string type;           // "int32", "bool"
  std::string default_value;  // as JSON
  std::string description;
};

// A recipe of a method as RecipeDescription in method.proto shows it: what it
// fixes (0 = anything) and the calibration it takes where none is asked for.
struct RecipeRow {
  std::string name;  // value of the message's `recipe`
  int bits = 0;
  int64_t group_size = 0;  // -1 = per channel
  int activation_bits = 0;
  StreamShape calibration = {};  // 0 = as without a recipe
};

// Everything outside a method's own folder that knows of it.
struct MethodRow {
  std::string name;  // field of Method in method.proto
  std::string summary;
  std::vector<int> bits;
  bool needs_calibration = false;
  std::vector<std::string> output_formats;
  std::string reference;
  std::vector<ParameterRow> parameters;
  // Reads the method's own options (all but `grid` and `activations`) out of its message.
  std::unique_ptr<Method> (*create)(JsonObject& options) = nullptr;
  // Reads `grid`; nullptr = ParseGrid.
  GridSpec (*parse_grid)(JsonObject& options) = nullptr;
  WeightKind weights = WeightKind::kGrid;
  // Whether its message has `activations` (ActivationGrid).
  bool quantizes_activations = false;
  // What `activations` is where the message leaves it open; nullptr: 16 bits.
  ActivationSpec (*default_activations)(JsonObject& options) = nullptr;
  // Reads how the model is to be rotated first; nullptr: never.
  RotationSpec (*rotation)(JsonObject& options, const ActivationSpec& activations) = nullptr;
  std::vector<RecipeRow> recipes = {};  // values of its message's `recipe`, or of first_pass.recipe
};

// What stands in for `grid` with methods that have none: the plain grid their
// blocks' loss is compared with (loss_rtn), 2 bits a weight, one group a row.
constexpr GridSpec kReferenceGrid = {2, -1, false};

// The table. Constant, lives as long as the process.
std::span<const MethodRow> Methods();

// nullptr when there is none of that name.
const MethodRow* FindMethod(const std::string& name);

// `grid` of a method's message; what it leaves open is taken from `defaults`.
// Throws INVALID_SPEC.
GridSpec ParseGrid(JsonObject& options, const GridSpec& defaults = {});

// `activations` of a method's message; 16 bits when absent. Throws INVALID_SPEC.
ActivationSpec ParseActivations(JsonObject& options, const ActivationSpec& defaults = {});

// `compute_dtype` of a method's message; `of_recipe` when absent.
ComputeChoice ParseComputeDtype(JsonObject& options, ComputeChoice of_recipe);

// `token_energy_limit` of a method's message; `of_recipe` when absent, 0 when it asks for none.
// Throws INVALID_SPEC.
double ParseTokenEnergyLimit(JsonObject& options, double of_recipe);

// `rotation` of a method's message: enabled; online where asked for, by default
// when activations are quantized. For MethodRow::rotation.
RotationSpec ParseRotation(JsonObject& options, const ActivationSpec& activations);

// {"methods": [MethodDescription, ...]}, what `quantry-engine methods` prints.
nlohmann::json MethodsJson();

}  // namespace quantry::engine
