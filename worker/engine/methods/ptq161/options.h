#pragma once

#include <cstdint>

#include "worker/engine/nn/products.h"

namespace quantry::engine {

// What PTQ1.61 leaves open (spec: ptq161.md 13). The defaults are the authors'
// code; each departure is a switch of its own.
struct Ptq161Options {
  enum class Statistic {
    kMax,   // max |x| over all tokens: the code
    kMean,  // mean |x|: the paper
    // Not in the paper: what 4 bits save of the output's squared error over a
    // sign, as far as the diagonal of the inputs' second moments tells it.
    kSensitivity,
  };

  // Structured mask (2).
  bool mask = true;  // false: every column binary
  double salient_ratio = 0.2;
  Statistic statistic = Statistic::kMax;
  bool exact_top_k = false;      // floor(ratio m) columns instead of the threshold's
  int64_t salient_multiple = 0;  // the next channels promoted up to a multiple; 0 = none
  // With preprocessing: the first pass's columns again instead of those the
  // restored model would choose.
  bool first_pass_mask = false;
  bool salient_grid = false;  // 4-bit range over salient columns instead of all

  // Binarization (3).
  bool centered_gain = false;  // alpha = mean|W - mu| instead of mean|W|

  // Block-wise training (4).
  int epochs = 20;              // 0: analytic scales
  double gain_rate = 5e-4;      // learning rate of alpha
  double rank_one_rate = 1e-3;  // of r1 and r2
  bool relative_gain = false;   // alpha = alpha0 * p, p trained, instead of alpha itself
  bool shuffle = false;         // samples in a new order every epoch
  double mse_weight = 1;
  double cosine_weight = 1;
  bool token_cosine = false;  // mean of the tokens' -log cos instead of -log of the mean
  // Not in the paper: see MostTokenEnergy; of the squared errors and of learned
  // rounding's loss. 0 = no limit.
  double token_energy_limit = 0;
  // An epoch that lowers the loss by a smaller share ends the block; 0 = never.
  double stop_improvement = 0;

  // Not in the paper: signs and 4-bit codes learned by progressive rounding
  // before the gains are trained (learned_rounding.h).
  bool learn_rounding = false;
  int rounding_stages = 20;
  int64_t rounding_steps = 32;  // a stage
  int64_t rounding_batch = 0;   // windows a step; 0 = 4, or all where there are fewer
  double rounding_rate = 1e-2;
  double rounding_scale_rate = 1e-2;

  ComputeDtype compute = ComputeDtype::kFloat32;  // of training's products

  bool operator==(const Ptq161Options&) const = default;
};

}  // namespace quantry::engine
