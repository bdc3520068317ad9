#include "worker/engine/methods/tesseraq/options.h"

namespace quantry::engine {

namespace {

// Rates high enough that weights far from the middle of a step still move in few steps,
// then scales and norms of the whole model.
TesseraqRecipe TesseraqPlus() {
  TesseraqRecipe plus;
  plus.name = "tesseraq-plus";
  plus.summary = "any grid: tuned ranges, few steps at a high rate, then the whole model's scales";
  plus.budgets = {{{25, 0.03, 200, 8192}, {14, 0.035, 150, 8192}, {8, 0.04, 100, 8192}}};
  plus.default_budget = 2;
  plus.calibration = {128, 2048};
  plus.init = RoundingInit::kSignround;
  plus.init_of_few_activation_bits = RoundingInit::kQuarot;
  plus.repeat_worse_stages = true;
  plus.token_energy_limit = 300;
  plus.tuning.scale_rate = 0.01;
  plus.halves_tuning_rate = true;
  plus.tuning.dense_rate = 0.003;
  plus.compute = std::nullopt;
  return plus;
}

}  // namespace

// The authors' settings: N = 512 windows of 2048 tokens, batch 4, rate 1e-3,
// 250 steps a stage (spec: tesseraq.md 4.1); and ours.
const std::vector<TesseraqRecipe>& TesseraqRecipes() {
  static const std::vector<TesseraqRecipe> table = {
      {"tesseraq-w2g128", "2-bit weights, groups of 128", GridSpec{2, 128, false}},
      {"tesseraq-w2g64", "2-bit weights, groups of 64", GridSpec{2, 64, false}},
      {"tesseraq-w2", "2-bit weights, per channel", GridSpec{2, -1, false}},
      {"tesseraq-w3g128", "3-bit weights, groups of 128", GridSpec{3, 128, false}},
      {"tesseraq-w3", "3-bit weights, per channel", GridSpec{3, -1, false}},
      {"tesseraq-w4", "4-bit weights, per channel", GridSpec{4, -1, false}},
      {"tesseraq-w4a4", "4-bit weights and activations, per channel", GridSpec{4, -1, false}, 4},
      {"tesseraq-w3a3", "3-bit weights and activations, per channel", GridSpec{3, -1, false}, 3},
      TesseraqPlus(),
  };
  return table;
}

}  // namespace quantry::engine
