#include "worker/engine/methods/awq/fold.h"

#include "worker/engine/base/error.h"
#include "worker/engine/methods/block_weights.h"

namespace quantry::engine {
namespace {

using Dtypes = std::map<std::string, at::ScalarType>;

// bias / scale, rounded as it will be stored.
void FoldBias(const std::string& key, const at::Tensor& scale, const Dtypes& dtypes,
              at::Tensor& bias) {
  if (bias.defined()) bias = RoundToStorage(bias / scale, StorageDtype(dtypes, key));
}

// Divides a norm's output; returns the scale that its rounded weight stands for.
at::Tensor FoldIntoNorm(const at::Tensor& scale, const Dtypes& dtypes, Norm& norm) {
  const at::Tensor folded =
      RoundToStorage(norm.weight / scale, StorageDtype(dtypes, norm.name + ".weight"));
  // A weight of 0, or one that vanishes or overflows when folded, keeps its value.
  const at::Tensor usable = (folded != 0).logical_and_(at::isfinite(folded));
  const at::Tensor actual = at::where(usable, norm.weight / folded, at::ones_like(scale));
  norm.weight = at::where(usable, folded, norm.weight);
  FoldBias(norm.name + ".bias", actual, dtypes, norm.bias);
  return actual;
}

}  // namespace

at::Tensor FoldScale(const SmoothingGroup& group, const at::Tensor& scale, const Dtypes& dtypes,
                     Block& block) {
  at::Tensor actual = scale;
  if (group.previous_is_norm) {
    Norm* norm = block.FindNorm(group.previous);
    if (norm == nullptr) {
      throw EngineError(FailureClass::kBug, "INTERNAL", "the block has no norm " + group.previous);
    }
    actual = FoldIntoNorm(scale, dtypes, *norm);
  } else {
    Linear& previous = block.linears.at(block.LinearIndex(group.previous));
    previous.weight = previous.weight / scale.unsqueeze(1);
    FoldBias(previous.name + ".bias", scale, dtypes, previous.bias);
  }
  for (const int index : group.linears) {
    block.linears[index].weight = block.linears[index].weight * actual;
  }
  return actual;
}

}  // namespace quantry::engine
