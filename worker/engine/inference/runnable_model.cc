#include "worker/engine/inference/runnable_model.h"

#include <functional>
#include <memory>
#include <utility>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/export/manifest_check.h"
#include "worker/engine/kernels/packed_linear.h"
#include "worker/engine/kernels/tiled_linear.h"
#include "worker/engine/nn/transformer.h"

namespace quantry::engine {
namespace {

// A linear in the container must have the shape that config.json implies.
void CheckShape(const QuantizedLinear& linear, const LinearShape& wanted) {
  if (linear.rows() == wanted.out && linear.columns() == wanted.in) return;
  throw UserError("INVALID_CHECKPOINT",
                  StrCat(linear.name, " is ", linear.rows(), " x ", linear.columns(),
                         " in the container, config.json implies ", wanted.out, " x ", wanted.in),
                  {{"tensor", linear.name}});
}

// Linear::product of a weight held as `Packed`.
template <typename Packed, typename... Arguments>
std::function<at::Tensor(const at::Tensor&)> ProductOf(const Arguments&... arguments) {
  return [packed = std::make_shared<const Packed>(arguments...)](const at::Tensor& x) {
    return packed->Apply(x);
  };
}

}  // namespace

std::shared_ptr<const RunnableModel> RunnableModel::Open(const std::string& dir,
                                                         PackedProduct product) {
  auto model = std::make_shared<RunnableModel>();
  model->product_ = product;
  const bool container = IsQuantryContainer(dir);
  if (container || IsOfArtifact(dir)) CheckAgainstManifest(dir);
  if (!container) {
    model->checkpoint_ = Checkpoint::Open(dir);
    return model;
  }
  model->container_ = std::make_unique<ContainerReader>(dir);
  model->checkpoint_ =
      Checkpoint::OpenPacked(dir, ContainerReader::kStem, model->container_->modules());
  return model;
}

std::string RunnableModel::kind() const {
  if (!container_) return "dense";
  return container_->kind() == WeightKind::kMixedBinary ? "mixed-binary" : "grid";
}

Block RunnableModel::LoadBlock(int index, const at::Device& device) const {
  Block block = engine::LoadBlock(*checkpoint_, index, device);
  if (!container_) return block;
  const std::string prefix = checkpoint_->BlockPrefix(index);
  for (size_t i = 0; i < block.linears.size(); ++i) {
    Linear& linear = block.linears[i];
    if (linear.weight.defined()) continue;  // a linear the container holds dense
    const QuantizedLinear read = container_->Read(prefix + linear.name);
    CheckShape(read, ShapeOf(checkpoint_->config(), block.architecture->linears[i].role));
    if (!read.mixed) {
      linear.weight = read.Dequantize().to(device);
      continue;
    }
    linear.product = device.is_cpu() && product_ == PackedProduct::kAuto
                         ? ProductOf<PackedLinear>(*read.mixed, linear.bias)
                         : ProductOf<TiledLinear>(*read.mixed, linear.bias, device);
  }
  return block;
}

std::vector<Block> RunnableModel::LoadBlocks(const at::Device& device) const {
  std::vector<Block> blocks;
  for (int i = 0; i < checkpoint_->config().num_layers; ++i) blocks.push_back(LoadBlock(i, device));
  return blocks;
}

std::shared_ptr<const RunnableModel> OpenRunnable(const Options& options) {
  const std::string name = options.Text("packed-product", "auto");
  if (name != "auto" && name != "tiles") {
    throw UsageError(StrCat("--packed-product must be auto or tiles, got '", name, "'"));
  }
  using PackedProduct = RunnableModel::PackedProduct;
  return RunnableModel::Open(options.Text("model", ""),
                             name == "auto" ? PackedProduct::kAuto : PackedProduct::kTiles);
}

}  // namespace quantry::engine
