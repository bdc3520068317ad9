#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <vector>

#include "worker/engine/methods/method.h"
#include "worker/engine/methods/ptq161/options.h"

namespace quantry::engine {

// What one pass of the full-precision block over both streams tells.
struct BlockSurvey {
  // By source linear (InputSource): max or mean of |x|, or mean of x^2
  // (kSensitivity), over all tokens of the full-precision stream, fp32 [in], CPU.
  std::map<int, at::Tensor> statistics;
  // fp32 [windows, length, hidden], host memory.
  at::Tensor target_fp;  // F(X_fp; W), what the original model makes
  at::Tensor target_q;   // F(X_q; W), what this block should make of its input
};

// Advances `progress` by Batches().
BlockSurvey SurveyBlock(const BlockTask& task, Ptq161Options::Statistic statistic,
                        ProgressSink& progress);

// Columns the threshold rule keeps of `in` when no two statistics are equal:
// floor(ratio in) + 1, or floor(ratio in) with exact_top_k, promoted to the
// multiple. 0 without a mask.
int64_t SalientCount(const Ptq161Options& options, int64_t in_features);

// int32 [k], ascending: the salient columns (spec: ptq161.md 2.2). Everything
// from the threshold up is salient, ties included, unless ties would take more
// than half of the columns: those are then broken by the lower index.
at::Tensor SelectSalient(const Ptq161Options& options, const at::Tensor& statistic);

// Salient columns of every linear of the block, as SelectSalient gives them;
// linears with one input share the selection. With kSensitivity a column counts
// mean x^2 times the squared error that 4 bits save over a sign in all linears
// that share it; mean x^2 alone where that sum is nowhere above 0 or not finite.
std::vector<at::Tensor> SelectColumns(const Block& block, const Ptq161Options& options,
                                      const BlockSurvey& survey);

// Salient columns as the first pass of preprocessing chose them, by linear of
// the block (Ptq161Options::first_pass_mask).
std::vector<at::Tensor> ColumnsOfFirstPass(const QuantizedBlock& first_pass);

}  // namespace quantry::engine
