#include "worker/engine/methods/rows.h"

#include <optional>

#include "worker/engine/base/json_object.h"
#include "worker/engine/methods/gptq/gptq.h"
#include "worker/engine/methods/omniquant/omniquant.h"
#include "worker/engine/methods/quarot/quarot.h"
#include "worker/engine/methods/signround/signround.h"

namespace quantry::engine {
namespace {

constexpr int64_t kMaxCount = 1000000;

// Grids that are fixed beforehand, or are the same either way.
void RefuseIdleGroups(JsonObject& options, const ColumnOptions& columns) {
  const int64_t group = ParseGrid(options).group_size;
  if (group == -1) {
    options.RefuseIdle({"static_groups", "fresh_groups"},
                       "with one group a row (choose a grid.group_size or leave it out)");
  }
  if (columns.act_order) {
    options.RefuseIdle({"static_groups", "fresh_groups"},
                       "with act_order, which fixes all grids beforehand (leave one of the two "
                       "out)");
  }
  if (columns.static_groups) {
    options.RefuseIdle({"fresh_groups"}, "with static_groups (leave one of the two out)");
  }
  if (group % columns.block_size == 0) {
    options.RefuseIdle({"fresh_groups"},
                       "where every group begins a block of columns (choose a block_size that "
                       "does not divide grid.group_size, or leave it out)");
  }
}

std::unique_ptr<Method> CreateGptq(JsonObject& options) {
  GptqOptions gptq;
  ColumnOptions& columns = gptq.columns;
  columns.act_order = options.Bool("act_order", false);
  columns.static_groups = options.Bool("static_groups", false);
  columns.fresh_groups = options.Bool("fresh_groups", false);
  const double damping = options.Number("damping", 0, 0);
  if (damping > 1) options.Refuse("damping", "a share of at most 1");
  if (damping > 0) columns.damping = damping;
  const int64_t size = options.Int("block_size", 0, 0, kMaxGroupSize);
  if (size > 0) columns.block_size = size;
  RefuseIdleGroups(options, columns);
  gptq.true_sequential = options.Bool("true_sequential", false);
  return std::make_unique<Gptq>(gptq);
}

std::optional<bool> OptionalBool(JsonObject& options, const char* name) {
  if (!options.Has(name)) return std::nullopt;
  return options.Bool(name, false);
}

// A share 0 .. 1, `fallback` when 0 or absent.
double Share(JsonObject& options, const char* name, double fallback) {
  const double value = options.Number(name, 0, 0);
  if (value > 1) options.Refuse(name, "0 to 1");
  return value > 0 ? value : fallback;
}

// Above 0 and at most 1, `fallback` when absent.
double Rate(JsonObject& options, const char* name, double fallback) {
  const double value = options.Positive(name, fallback);
  if (value > 1) options.Refuse(name, "above 0 and at most 1");
  return value;
}

// A count, `fallback` when 0 or absent.
int Count(JsonObject& options, const char* name, int fallback) {
  const int64_t value = options.Int(name, 0, 0, kMaxCount);
  return value > 0 ? static_cast<int>(value) : fallback;
}

std::unique_ptr<Method> CreateOmniquant(JsonObject& options) {
  OmniquantOptions omniquant;
  omniquant.learn_transform = OptionalBool(options, "learn_transform");
  // An OPT learns one by itself, but here no model is known yet.
  if (!omniquant.learn_transform.value_or(ParseActivations(options).enabled())) {
    options.RefuseIdle({"transform_learning_rate", "transform_alpha", "untie_rope_pairs"},
                       "unless a transformation is learned (set learn_transform, for OPT too, or "
                       "leave it out)");
  }
  omniquant.epochs = Count(options, "epochs", 0);
  omniquant.learning_rate = Rate(options, "learning_rate", omniquant.learning_rate);
  omniquant.transform_learning_rate =
      Rate(options, "transform_learning_rate", omniquant.transform_learning_rate);
  omniquant.transform_alpha = Share(options, "transform_alpha", omniquant.transform_alpha);
  omniquant.augmented_loss = OptionalBool(options, "augmented_loss");
  omniquant.batch_size = Count(options, "batch_size", omniquant.batch_size);
  omniquant.tie_rope_pairs = !options.Bool("untie_rope_pairs", false);
  return std::make_unique<Omniquant>(omniquant, ParseGrid(options).bits);
}

std::unique_ptr<Method> CreateQuarot(JsonObject& options) {
  return std::make_unique<Quarot>(
      QuarotOptions{options.Bool("search_clip", false), options.Bool("gptq", false)});
}

std::unique_ptr<Method> CreateSignround(JsonObject& options) {
  SignroundOptions signround;
  signround.iterations = Count(options, "iterations", signround.iterations);
  signround.learning_rate = Rate(options, "learning_rate", 0);
  signround.tune_ranges = !options.Bool("disable_range_tuning", false);
  if (!signround.tune_ranges) {
    options.RefuseIdle({"range_learning_rate"},
                       "with disable_range_tuning (leave one of the two out)");
  }
  signround.range_learning_rate = Rate(options, "range_learning_rate", 0);
  signround.batch_size = Count(options, "batch_size", 0);
  signround.token_energy_limit = options.Number("token_energy_limit", 0, 0);
  signround.quantized_input = !options.Bool("disable_quantized_input", false);
  return std::make_unique<Signround>(signround);
}

}  // namespace

const std::vector<int>& CommonBits() {
  static const std::vector<int> bits = {2, 3, 4, 6, 8};
  return bits;
}

const std::vector<std::string>& CommonFormats() {
  static const std::vector<std::string> formats = {
      "compressed-tensors", "dense", "quantry", "gptq", "gptq-v1", "awq", "int4-carrier"};
  return formats;
}

std::vector<ParameterRow> GridParameters() {
  return {{"grid.bits", "int32", "4", "Bits of one weight: 2, 3, 4, 6 or 8."},
          {"grid.group_size", "int32", "128",
           "Columns that share one scale; -1 = per channel. Must divide in_features."},
          {"grid.symmetric", "bool", "false",
           "Zero point fixed to 2^(bits-1) instead of an integer per group."},
          {"grid.zero_point_at_least_one", "bool", "false",
           "Integer zero points start at 1, as format gptq-v1 needs; not with symmetric."}};
}

// The row of a method that can quantize activations too.
MethodRow WithActivations(MethodRow row) {
  row.quantizes_activations = true;
  row.parameters.push_back({"activations.bits", "int32", "16",
                            "Quantize the input of every linear, dynamically per token: 2 to 8 "
                            "bits; 16 = leave it."});
  return row;
}

MethodRow GptqRow() {
  MethodRow row = {
      "gptq",           "Second-order rounding, column by column, with error compensation.",
      CommonBits(),     true,
      CommonFormats(),  "Frantar et al., arXiv 2210.17323",
      GridParameters(), CreateGptq};
  const auto add = [&](const char* name, const char* type, const char* value, const char* what) {
    row.parameters.push_back({name, type, value, what});
  };
  add("act_order", "bool", "false",
      "Columns by falling second moment of their input; fixes all grids beforehand.");
  add("static_groups", "bool", "false", "Grids of all groups from the weights as given.");
  add("damping", "double", "0.01",
      "Added to the second moments' diagonal, as a share of its mean.");
  add("block_size", "int32", "128", "Columns compensated at once.");
  add("true_sequential", "bool", "false", "Later linears see the block's earlier ones quantized.");
  add("fresh_groups", "bool", "false",
      "A group's grid sees all compensation before it, not only up to the last block_size "
      "columns.");
  return row;
}

MethodRow OmniquantRow() {
  MethodRow row = {
      "omniquant",      "Learnable clipping and equivalent transformation, trained block by block.",
      CommonBits(),     true,
      CommonFormats(),  "Shao et al., arXiv 2308.13137",
      GridParameters(), CreateOmniquant};
  row.parameters.insert(
      row.parameters.end(),
      {{"learn_transform", "bool", "null",
        "Learn per-channel scales too; by default when activations are quantized, and for OPT."},
       {"epochs", "int32", "20", "Passes over the calibration windows; 40 by default at 2 bits."},
       {"learning_rate", "double", "0.01", "Of the clipping logits."},
       {"transform_learning_rate", "double", "0.005", "Of the transformation."},
       {"transform_alpha", "double", "0.5", "Exponent of the first scales."},
       {"augmented_loss", "bool", "null",
        "Add the error against the original block on the quantized prefix; by default at 2 bits."},
       {"batch_size", "int32", "1", "Windows a step."},
       {"untie_rope_pairs", "bool", "false",
        "Scale every query and key channel alone; not exact with rotary positions."}});
  return row;
}

MethodRow QuarotRow() {
  MethodRow row = {
      "quarot",         "Hadamard rotation of the hidden states, then rounding to nearest or GPTQ.",
      CommonBits(),     false,
      CommonFormats(),  "Ashkboos et al., arXiv 2404.00456",
      GridParameters(), CreateQuarot};
  row.rotation = ParseRotation;
  row.parameters.insert(
      row.parameters.end(),
      {{"rotation.online", "bool", "null",
        "Rotate inputs of attention output and down projection while the model runs; by default "
        "when activations are quantized."},
       {"search_clip", "bool", "false", "Search every group's range by its own error."},
       {"gptq", "bool", "false", "Round with GPTQ; needs calibration."}});
  return row;
}

MethodRow SignroundRow() {
  MethodRow row = {
      "signround",      "Rounding offsets and ranges tuned by signed gradient descent (AutoRound).",
      CommonBits(),     true,
      CommonFormats(),  "Cheng et al., arXiv 2309.05516",
      GridParameters(), CreateSignround};
  row.parameters.insert(
      row.parameters.end(),
      {{"iterations", "int32", "200", "Steps a block."},
       {"learning_rate", "double", "1 / iterations", "First step of a rounding offset."},
       {"range_learning_rate", "double", "learning_rate", "First step of a range factor."},
       {"batch_size", "int32", "8", "Windows a step."},
       {"disable_range_tuning", "bool", "false", "Keep min/max ranges."},
       {"token_energy_limit", "double", "0",
        "Tokens of more than so many times the median energy count as if they had that."},
       {"disable_quantized_input", "bool", "false",
        "Train on the original model's activations, not the quantized prefix's."}});
  return row;
}

}  // namespace quantry::engine
