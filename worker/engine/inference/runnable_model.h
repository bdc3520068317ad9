#pragma once

#include <memory>
#include <string>
#include <vector>

#include "worker/engine/base/options.h"
#include "worker/engine/export/container_reader.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/block.h"

namespace quantry::engine {

// A folder whose model can be run: a dense checkpoint, or a quantry container.
// Weights on a grid become fp32 when their block is loaded; weights of PTQ1.61
// stay packed, on the block's device. Immutable, thread-safe; outlives the
// blocks loaded from it.
class RunnableModel {
 public:
  // How packed weights are multiplied: kAuto = the CPU's kernels (PackedLinear)
  // there, tiles (TiledLinear) on any other device.
  enum class PackedProduct { kAuto, kTiles };

  // Throws UserError as Checkpoint::Open and ContainerReader do.
  static std::shared_ptr<const RunnableModel> Open(const std::string& dir,
                                                   PackedProduct product = PackedProduct::kAuto);

  // Everything but the weights of quantized linears.
  const std::shared_ptr<const Checkpoint>& checkpoint() const { return checkpoint_; }
  // "dense", "grid" or "mixed-binary".
  std::string kind() const;
  Block LoadBlock(int index, const at::Device& device = at::kCPU) const;
  std::vector<Block> LoadBlocks(const at::Device& device = at::kCPU) const;

 private:
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::unique_ptr<const ContainerReader> container_;  // null: dense
  PackedProduct product_ = PackedProduct::kAuto;
};

// The model that a tool's --model names, with its --packed-product. Throws UsageError.
std::shared_ptr<const RunnableModel> OpenRunnable(const Options& options);

}  // namespace quantry::engine
