#include "worker/engine/methods/tesseraq/options.h"

namespace quantry::engine {

namespace {

// A rate high enough that weights far from the middle of a step still move in
// a tenth of the published steps, then scales and norms of the whole model.
TesseraqRecipe TesseraqPlus() {
  TesseraqRecipe plus;
  plus.name = "tesseraq-plus";
  plus.summary = "any grid: a tenth of the steps at a higher rate, then the whole model's scales";
  plus.steps_per_stage = 25;
  plus.learning_rate = 0.03;
  plus.takes_budget = false;
  plus.calibration = {128, 2048};
  plus.tuning.steps = 200;
  plus.init = RoundingInit::kSignround;
  plus.tuning.scale_rate = 0.01;
  plus.tuning.dense_rate = 0.003;
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
