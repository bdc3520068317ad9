#include <unordered_map>

#include "worker/engine/export/exporter.h"
#include "worker/engine/model/shared_inputs.h"

namespace quantry::engine {
namespace {

// Prefix the checkpoint really uses: "model." or "".
std::string ActualPrefix(const Checkpoint& checkpoint) {
  const std::string below = checkpoint.architecture().block_prefix + "0.";
  const std::string name = checkpoint.BlockPrefix(0);
  return name.substr(0, name.size() - below.size());
}

// A tied embedding may be stored under the head's name alone; readers look for
// it under its own.
std::string UsualName(const Checkpoint& checkpoint, const std::string& name) {
  const Architecture& architecture = checkpoint.architecture();
  if (name == checkpoint.EmbeddingName())
    return architecture.prefixes.at(0) + architecture.embedding;
  if (name == architecture.head) return name;
  return architecture.prefixes.at(0) + name.substr(ActualPrefix(checkpoint).size());
}

// The module whose mask linear `index` of a block shares, beside its own module.
std::string MaskModule(const Architecture& architecture, const std::string& module, size_t index) {
  const std::string& own = architecture.linears[index].name;
  const int source = InputSource(architecture, static_cast<int>(index));
  return module.substr(0, module.size() - own.size()) + architecture.linears[source].name;
}

// Fills in what kind of tensor a block's `key` ("self_attn.q_proj.weight") is.
void Classify(const Checkpoint& checkpoint, PlannedTensor& tensor) {
  tensor.kind = PlannedTensor::Kind::kBlockDense;
  const Architecture& architecture = checkpoint.architecture();
  for (size_t i = 0; i < architecture.linears.size(); ++i) {
    const LinearSpec& linear = architecture.linears[i];
    if (tensor.key == linear.name + ".weight") {
      tensor.kind = PlannedTensor::Kind::kLinear;
      tensor.key = linear.name;
      tensor.written = tensor.written.substr(0, tensor.written.size() - 7);  // ".weight"
      tensor.shape = ShapeOf(checkpoint.config(), linear.role);
      tensor.mask_module = MaskModule(architecture, tensor.written, i);
      return;
    }
    if (tensor.key == linear.name + ".bias") {
      tensor.kind = PlannedTensor::Kind::kBias;
      tensor.key = linear.name;
      return;
    }
  }
}

// Index of the block that holds a tensor, and its name below the block.
std::pair<int, std::string> FindBlock(const Checkpoint& checkpoint, const std::string& name) {
  const std::string front = checkpoint.BlockPrefix(0);  // "model.layers.0."
  const std::string stem = front.substr(0, front.size() - 2);
  if (name.compare(0, stem.size(), stem) != 0) return {-1, ""};
  const size_t dot = name.find('.', stem.size());
  if (dot == std::string::npos) return {-1, ""};
  return {std::stoi(name.substr(stem.size(), dot - stem.size())), name.substr(dot + 1)};
}

}  // namespace

std::vector<PlannedTensor> PlanTensors(const Checkpoint& checkpoint,
                                       const SalientColumns& salient) {
  std::vector<PlannedTensor> plan;
  for (const std::string& name : checkpoint.names()) {
    PlannedTensor tensor;
    tensor.source = name;
    tensor.written = UsualName(checkpoint, name);
    std::tie(tensor.block, tensor.key) = FindBlock(checkpoint, name);
    if (tensor.block >= 0) Classify(checkpoint, tensor);
    if (salient && tensor.kind == PlannedTensor::Kind::kLinear) {
      tensor.salient = salient(tensor.block, tensor.key, tensor.shape.in);
    }
    const TensorInfo& info = checkpoint.Info(name);
    tensor.dense = {tensor.written, info.dtype, info.shape};
    plan.push_back(std::move(tensor));
  }
  return plan;
}

std::vector<PlannedLinear> PlannedLinears(const std::vector<PlannedTensor>& plan) {
  std::vector<PlannedLinear> linears;
  for (const PlannedTensor& tensor : plan) {
    if (tensor.kind == PlannedTensor::Kind::kLinear) {
      linears.push_back(tensor.Linear());
    }
  }
  return linears;
}

std::vector<TensorSpec> OutputSpecs(const std::vector<PlannedTensor>& plan, const Layout& layout) {
  std::vector<TensorSpec> specs;
  for (const PlannedTensor& tensor : plan) {
    if (tensor.kind != PlannedTensor::Kind::kLinear) {
      specs.push_back(tensor.dense);
      continue;
    }
    for (TensorSpec& spec : layout.Specs(tensor.Linear())) {
      specs.push_back(std::move(spec));
    }
  }
  return specs;
}

}  // namespace quantry::engine
