#include "worker/engine/reconstruct/block_objective.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <utility>

#include "worker/engine/base/random.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/nn/simd_kernels.h"
#include "worker/engine/reconstruct/over_shares.h"
#include "worker/engine/reconstruct/token_weights.h"

namespace quantry::engine {
namespace {

at::Tensor Leaf(const at::Tensor& value, const at::Device& device) {
  return value.detach().to(device).requires_grad_(true);
}

// The block with leaves in place of what is trained.
struct Leaves {
  Leaves(const Block& source, const TrainableTensors& at, const at::Device& device)
      : block(source) {
    for (size_t i = 0; i < block.linears.size(); ++i) {
      block.linears[i].weight = Leaf(at.weights[i], device);
    }
    const std::vector<at::Tensor*> dense = DenseParameters(block);
    for (size_t i = 0; i < at.dense.size(); ++i) *dense[i] = Leaf(at.dense[i], device);
  }

  Block block;
};

at::Tensor GradientOf(const at::Tensor& leaf) {
  const at::Tensor& gradient = leaf.grad();
  return gradient.defined() ? gradient.to(at::kCPU).contiguous() : at::zeros_like(leaf, at::kCPU);
}

// Of fp32 [..., n]; each row's in fp32, their sum in fp64.
double SumOfSquares(const at::Tensor& values) {
  if (!values.is_cpu() || !simd::Available())
    return values.square().sum(at::kDouble).item<double>();
  const int64_t width = values.size(-1), rows = values.numel() / width;
  const auto* row = values.const_data_ptr<float>();
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i, row += width) sum += simd::Dot(row, row, width);
  return sum;
}

void AddTensors(std::vector<at::Tensor>& sums, const std::vector<at::Tensor>& parts) {
  for (size_t i = 0; i < sums.size(); ++i) sums[i].add_(parts[i]);
}

void AddResult(BlockObjective::Result& sum, const BlockObjective::Result& part) {
  sum.loss += part.loss;
  AddTensors(sum.weight_gradients, part.weight_gradients);
  AddTensors(sum.dense_gradients, part.dense_gradients);
}

}  // namespace

std::vector<at::Tensor*> DenseParameters(Block& block) {
  std::vector<at::Tensor*> dense;
  const auto add = [&](at::Tensor& tensor) {
    if (tensor.defined()) dense.push_back(&tensor);
  };
  for (Norm& norm : block.norms) {
    add(norm.weight);
    add(norm.bias);
  }
  for (Linear& linear : block.linears) add(linear.bias);
  return dense;
}

BlockObjective::BlockObjective(const Block& block, const RopeTable& rope, at::Tensor inputs,
                               at::Tensor targets, const at::Device& device)
    : block_(block),
      rope_(rope),
      inputs_(std::move(inputs)),
      targets_(std::move(targets)),
      device_(device) {}

void BlockObjective::MixInputs(at::Tensor x_fp, double probability) {
  clean_ = std::move(x_fp);
  mixing_ = probability;
}

void BlockObjective::LimitTokens(double limit) { roots_ = RootTokenWeights(targets_, limit); }

at::Tensor BlockObjective::Inputs(const std::vector<int64_t>& windows, uint64_t seed) const {
  const at::Tensor index = at::tensor(windows, at::kLong);
  const at::Tensor input = inputs_.index_select(0, index);
  if (mixing_ == 0) return input.to(device_);
  at::Tensor clean = at::empty({input.size(0), input.size(1), 1}, at::kBool);
  auto* mask = clean.mutable_data_ptr<bool>();
  const auto limit = static_cast<uint64_t>(mixing_ * 1e6);
  for (size_t i = 0; i < windows.size(); ++i) {
    Random random(seed ^ (static_cast<uint64_t>(windows[i]) << 32));
    for (int64_t t = 0; t < input.size(1); ++t) *mask++ = random.Below(1000000) < limit;
  }
  return at::where(clean, clean_.index_select(0, index), input).to(device_);
}

BlockObjective::Result BlockObjective::Part(const std::vector<int64_t>& windows, double tokens,
                                            const TrainableTensors& at, uint64_t seed) const {
  const at::Tensor index = at::tensor(windows, at::kLong);
  const at::Tensor input = Inputs(windows, seed);
  const at::Tensor target = targets_.index_select(0, index).to(device_);
  c10::AutoGradMode with_gradients(true);
  Leaves leaves(block_, at, device_);
  const at::Tensor output = leaves.block.Forward(input, rope_);
  const at::Tensor error = output.detach() - target;
  const at::Tensor roots = roots_.defined() ? roots_.index_select(0, index).to(device_) : roots_;
  if (roots.defined()) error.mul_(roots);
  Result result;
  result.loss = SumOfSquares(error) / tokens;
  if (roots.defined()) error.mul_(roots);
  output.backward(error.mul_(2.0 / tokens));
  for (const Linear& linear : leaves.block.linears) {
    result.weight_gradients.push_back(GradientOf(linear.weight));
  }
  const std::vector<at::Tensor*> dense = DenseParameters(leaves.block);
  for (size_t i = 0; i < at.dense.size(); ++i) {
    result.dense_gradients.push_back(GradientOf(*dense[i]));
  }
  return result;
}

BlockObjective::Result BlockObjective::Gradients(const std::vector<int64_t>& windows,
                                                 const TrainableTensors& at, uint64_t seed) const {
  const double tokens = static_cast<double>(windows.size()) * static_cast<double>(inputs_.size(1));
  return OverShares(
      device_, windows,
      [&](const std::vector<int64_t>& share) { return Part(share, tokens, at, seed); }, AddResult);
}

BlockObjective::Losses BlockObjective::LossesOf(const TrainableTensors& at, int64_t first,
                                                int64_t last) const {
  const StreamShape stream{last - first, inputs_.size(1)};
  const at::Tensor inputs = inputs_.slice(0, first, last);
  const at::Tensor targets = targets_.slice(0, first, last);
  const at::Tensor roots = roots_.defined() ? roots_.slice(0, first, last) : roots_;
  Block block = block_.Computing(ComputeDtype::kFloat32);
  for (size_t i = 0; i < block.linears.size(); ++i) {
    block.linears[i].weight = at.weights[i].to(device_);
  }
  const std::vector<at::Tensor*> dense = DenseParameters(block);
  for (size_t i = 0; i < at.dense.size(); ++i) *dense[i] = at.dense[i].to(device_);
  std::vector<Losses> parts(Batches(stream));
  ForEachBatch(stream, BatchWorkers(*block.config, stream, device_), [&](int, const Batch& batch) {
    const c10::AutoGradMode without_gradients(false);
    const at::Tensor output =
        block.Forward(inputs.slice(0, batch.first, batch.last).to(device_), rope_);
    const at::Tensor error = output - targets.slice(0, batch.first, batch.last).to(device_);
    Losses& part = parts[batch.index];
    part.all = part.limited = error.square().sum(at::kDouble).item<double>();
    if (!roots.defined()) return;
    error.mul_(roots.slice(0, batch.first, batch.last).to(device_));
    part.limited = error.square().sum(at::kDouble).item<double>();
  });
  const auto tokens = static_cast<double>(stream.windows * stream.length);
  Losses sum;
  for (const Losses& part : parts) {
    sum.all += part.all;
    sum.limited += part.limited;
  }
  return {sum.all / tokens, sum.limited / tokens};
}

}  // namespace quantry::engine
