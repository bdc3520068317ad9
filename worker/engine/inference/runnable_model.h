#pragma once

#include <memory>
#include <string>
#include <vector>

#include "worker/engine/export/container_reader.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/nn/block.h"

namespace quantry::engine {

// A folder whose model can be run: a dense checkpoint, or a quantry container.
// Weights on a grid become fp32 when their block is loaded; weights of PTQ1.61
// stay packed (PackedLinear), on the CPU. Immutable, thread-safe; outlives the
// blocks loaded from it.
class RunnableModel {
 public:
  // Throws UserError as Checkpoint::Open and ContainerReader do.
  static std::shared_ptr<const RunnableModel> Open(const std::string& dir);

  // Everything but the weights of quantized linears.
  const std::shared_ptr<const Checkpoint>& checkpoint() const { return checkpoint_; }
  // "dense", "grid" or "mixed-binary".
  std::string kind() const;
  Block LoadBlock(int index, const at::Device& device = at::kCPU) const;
  std::vector<Block> LoadBlocks() const;

 private:
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::unique_ptr<const ContainerReader> container_;  // null: dense
};

}  // namespace quantry::engine
