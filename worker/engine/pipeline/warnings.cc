#include "worker/engine/pipeline/warnings.h"

#include "worker/engine/base/strings.h"
#include "worker/engine/methods/method.h"

namespace quantry::engine {
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
      "gains and scales beyond fp16 are stored as its largest value, 65504: ", Join(linears),
      "; these linears no longer compute what was trained: check the checkpoint, whose "
      "weights there are far larger than those of trained models");
}

}  // namespace quantry::engine
