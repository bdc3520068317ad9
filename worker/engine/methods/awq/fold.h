#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>

#include "worker/engine/nn/block.h"

namespace quantry::engine {

// Multiplies the columns of the group's linears by a scale close to `scale`
// and divides the previous operation's outputs by it, in place. The block's
// function stays the same: where the previous operation is a norm kept in 16
// bits, its folded weight is rounded to `dtypes` first and the scale that
// really results is the one applied to the columns. Returns that scale [in].
at::Tensor FoldScale(const SmoothingGroup& group, const at::Tensor& scale,
                     const std::map<std::string, at::ScalarType>& dtypes, Block& block);

}  // namespace quantry::engine
