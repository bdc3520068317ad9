#pragma once

#include <map>
#include <string>

#include "worker/engine/methods/method.h"
#include "worker/engine/nn/block.h"
#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

// The block with every linear rounded to nearest on its plain grid, its inputs
// quantized as `activations` says; shares the other tensors.
Block RoundToNearest(const Block& block, const GridSpec& grid, at::ScalarType scale_dtype,
                     const ActivationSpec& activations = {});

// Norms of a block as QuantizedBlock::dense wants them: CPU, in the dtype of
// `dtypes`.
std::map<std::string, at::Tensor> DenseTensors(const Block& block,
                                               const std::map<std::string, at::ScalarType>& dtypes);

// The fp32 block a quantized one stands for: weights are the dequantized
// integers, norms the stored ones, inputs quantized as `activations` says. This
// is what evaluation and the quantized stream run; `source` gives architecture,
// config and device only.
Block Rebuild(const Block& source, const QuantizedBlock& quantized,
              const ActivationSpec& activations = {});

// `value` (fp32) rounded to the dtype it is stored in, as fp32.
at::Tensor RoundToStorage(const at::Tensor& value, at::ScalarType dtype);

// dtypes[key], fp32 when absent.
at::ScalarType StorageDtype(const std::map<std::string, at::ScalarType>& dtypes,
                            const std::string& key);

}  // namespace quantry::engine
