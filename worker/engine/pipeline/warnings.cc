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

struct Marked {
  std::string linear;  // "block 0's self_attn.q_proj"
  double value;
};

// Linears with a metric whose name is `prefix` and theirs.
std::vector<Marked> LinearsMarked(const std::string& prefix,
                                  const std::vector<BlockReport>& blocks) {
  std::vector<Marked> marked;
  for (const BlockReport& block : blocks) {
    for (const auto& [name, value] : block.metrics) {
      if (!name.starts_with(prefix)) continue;
      marked.push_back({StrCat("block ", block.index, "'s ", name.substr(prefix.size())), value});
    }
  }
  return marked;
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

void CheckStorage(const QuantizedBlock& block, std::map<std::string, double>& metrics) {
  for (const QuantizedLinear& linear : block.linears) {
    CheckStorable(linear);
    if (linear.kind() != WeightKind::kGrid) continue;  // the method itself counts its gains
    const std::string metric = kClippedMetric + linear.name;
    metrics.erase(metric);
    if (const int64_t clipped = ClippedScales(linear)) {
      metrics[metric] = static_cast<double>(clipped);
    }
  }
}

std::string ClippedWarning(const std::vector<BlockReport>& blocks) {
  std::vector<std::string> linears;
  for (const Marked& marked : LinearsMarked(kClippedMetric, blocks)) {
    linears.push_back(StrCat(marked.value, " of ", marked.linear));
  }
  if (linears.empty()) return "";
  return StrCat(
      "gains and scales beyond fp16 are stored as its largest value, 65504 (65280 in bf16): ",
      Join(linears),
      "; these linears compute something else than the method made: check the checkpoint, whose "
      "weights there are far larger than those of trained models");
}

std::string NearestWarning(const std::vector<BlockReport>& blocks) {
  std::vector<std::string> linears;
  for (const Marked& marked : LinearsMarked(kNearestMetric, blocks)) {
    linears.push_back(marked.linear);
  }
  if (linears.empty()) return "";
  return StrCat(
      "the second moments of some inputs have no inverse at any damping, so these "
      "linears are rounded to nearest, without compensation: ",
      Join(linears), "; give more calibration samples, or text more like what the model reads");
}

}  // namespace quantry::engine
