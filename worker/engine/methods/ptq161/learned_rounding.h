#pragma once

#include <cstdint>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/methods/ptq161/mask.h"
#include "worker/engine/methods/ptq161/mixed_linear.h"

namespace quantry::engine {

// What learning the roundings did to a block.
struct LearnedRoundingReport {
  double loss_first = 0;  // mean squared error a token of the first stage
  double loss_last = 0;   // and of the last
  double sign_flips = 0;  // share of signs that differ from sign(W - mu)
  double code_flips = 0;  // share of 4-bit codes that differ from nearest
};

// Learns signs and 4-bit codes in the manner of TesseraQ's progressive adaptive
// rounding (spec: tesseraq.md 2), all linears of a block together: a weight
// between two levels starts as what it is, soft between them; stage by stage the
// most decided ones are frozen to a level and the rest goes on training with the
// row scales and r2. A weight beyond C - A .. C + A starts at the nearer end and
// stays there (SoftRounding::IsOutside): its sign never flips. Leaves codes, signs, mu, alpha and
// r2 of `linears` as learned and r1 = 1. Reports LearnedRoundingSteps.
LearnedRoundingReport LearnRounding(const BlockTask& task, const Ptq161Options& options,
                                    const BlockSurvey& survey, std::vector<MixedLinear>& linears,
                                    ParameterBuffer& buffer, ProgressSink& progress);

int64_t LearnedRoundingSteps(const Ptq161Options& options);

// Windows that one of those steps takes of `windows`.
int64_t LearnedRoundingBatch(const Ptq161Options& options, int64_t windows);

}  // namespace quantry::engine
