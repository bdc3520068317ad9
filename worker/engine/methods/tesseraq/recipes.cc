#include "worker/engine/methods/tesseraq/options.h"

namespace quantry::engine {

// The authors' settings: N = 512 windows of 2048 tokens, batch 4, rate 1e-3,
// 250 steps a stage (spec: tesseraq.md 4.1).
const std::vector<TesseraqRecipe>& TesseraqRecipes() {
  static const std::vector<TesseraqRecipe> table = {
      {"tesseraq-w2g128", "2-bit weights, groups of 128", {2, 128, false}},
      {"tesseraq-w2g64", "2-bit weights, groups of 64", {2, 64, false}},
      {"tesseraq-w2", "2-bit weights, per channel", {2, -1, false}},
      {"tesseraq-w3g128", "3-bit weights, groups of 128", {3, 128, false}},
      {"tesseraq-w3", "3-bit weights, per channel", {3, -1, false}},
      {"tesseraq-w4", "4-bit weights, per channel", {4, -1, false}},
      {"tesseraq-w4a4", "4-bit weights and activations, per channel", {4, -1, false}, 4},
      {"tesseraq-w3a3", "3-bit weights and activations, per channel", {3, -1, false}, 3},
  };
  return table;
}

}  // namespace quantry::engine
