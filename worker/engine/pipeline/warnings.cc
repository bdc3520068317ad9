#include "worker/engine/pipeline/warnings.h"

#include "worker/engine/base/strings.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {
namespace {

// A larger share of zeros is no chance: trained weights have hardly one.
constexpr double kMostZeros = 0.1;

double ZeroShare(const Checkpoint& checkpoint) {
  int64_t zeros = 0, all = 0;
  for (int block = 0; block < checkpoint.config().num_layers; ++block) {
    for (const LinearSpec& linear : checkpoint.architecture().linears) {
      const std::string name = checkpoint.BlockPrefix(block) + linear.name + ".weight";
      const at::Tensor weight = checkpoint.View(name);
      zeros += weight.numel() - at::count_nonzero(weight).item<int64_t>();
      all += weight.numel();
      checkpoint.Release(name);
    }
  }
  return static_cast<double>(zeros) / static_cast<double>(all);
}

}  // namespace

std::string PrunedWarning(const MethodRow& method, const Checkpoint& checkpoint) {
  if (method.weights == WeightKind::kGrid) return "";
  const double share = ZeroShare(checkpoint);
  if (share <= kMostZeros) return "";
  return StrCat(Printed("%.1f", 100 * share),
                " % of the weights to be quantized are exactly zero, as in a pruned model, and "
                "method ",
                method.name,
                " gives every weight a sign: zeros become as large as their neighbours, and the "
                "result means little; quantize the model as it was before pruning, or take a "
                "method with a grid (`quantry methods`)");
}

void CheckStorage(MethodResult& result) {
  for (const QuantizedLinear& linear : result.block.linears) {
    CheckStorable(linear);
    if (const int64_t clipped = ClippedScales(linear)) {
      result.metrics[kClippedMetric + linear.name] = static_cast<double>(clipped);
    }
  }
}

std::string ClippedWarning(const std::vector<BlockReport>& blocks) {
  const std::string prefix = kClippedMetric;
  std::vector<std::string> linears;
  for (const BlockReport& block : blocks) {
    for (const auto& [name, count] : block.metrics) {
      if (!name.starts_with(prefix)) continue;
      linears.push_back(
          StrCat(count, " of block ", block.index, "'s ", name.substr(prefix.size())));
    }
  }
  if (linears.empty()) return "";
  return StrCat(
      "gains and scales beyond fp16 are stored as its largest value, 65504 (65280 in bf16): ",
      Join(linears),
      "; these linears compute something else than the method made: check the checkpoint, whose "
      "weights there are far larger than those of trained models");
}

}  // namespace quantry::engine
