#include "worker/engine/methods/omniquant/transform.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "worker/engine/methods/awq/fold.h"
#include "worker/engine/methods/awq/inputs.h"
#include "worker/engine/methods/block_weights.h"

namespace quantry::engine {
namespace {

constexpr double kSmallest = 1e-5;
constexpr double kLeastMagnitude = 1e-2;

// A value channel's scale for every query head that reads it: [kv_size] ->
// [query_size].
at::Tensor PerQueryHead(const at::Tensor& scale, const ModelConfig& config) {
  return scale.view({config.num_kv_heads, config.head_dim})
      .repeat_interleave(config.num_heads / config.num_kv_heads, 0)
      .reshape({-1});
}

// One value an output channel as [value heads, query heads that share one, head_dim].
at::Tensor ByValueHead(const at::Tensor& values, const ModelConfig& config) {
  return values.view(
      {config.num_kv_heads, config.num_heads / config.num_kv_heads, config.head_dim});
}

at::Tensor InitialScale(const at::Tensor& input_max, const at::Tensor& weight_max, double alpha) {
  return input_max.clamp_min(kSmallest)
      .pow(alpha)
      .div(weight_max.clamp_min(kSmallest).pow(1.0 - alpha))
      .clamp_min(kSmallest);
}

void Divide(at::Tensor& bias, const at::Tensor& scale) {
  if (bias.defined()) bias = bias / scale;
}

// The bias that a shift is taken from.
at::Tensor& BiasBefore(const SmoothingGroup& group, Block& block) {
  if (group.previous_is_norm) return block.FindNorm(group.previous)->bias;
  return block.linears.at(block.LinearIndex(group.previous)).bias;
}

// Biases on both sides.
bool TakesShift(const SmoothingGroup& group, Block block) {
  return BiasBefore(group, block).defined() &&
         std::all_of(group.linears.begin(), group.linears.end(),
                     [&](int index) { return block.linears[index].bias.defined(); });
}

// The linear whose weight a group's first scales look at: up, not gate.
int Representative(const Architecture& architecture, const SmoothingGroup& group) {
  for (const int index : group.linears) {
    if (architecture.linears[index].role == LinearRole::kUp) return index;
  }
  return group.linears.at(0);
}

}  // namespace

EquivalentTransform::EquivalentTransform(const Block& block,
                                         const std::map<int, at::Tensor>& input_max, double alpha,
                                         bool tie_rope_pairs,
                                         const std::map<int, at::Tensor>& shifts)
    : config_(block.config) {
  const Architecture& architecture = *block.architecture;
  for (const SmoothingGroup& group : architecture.smoothing_groups) {
    const int index = Representative(architecture, group);
    const LinearRole role = architecture.linears[index].role;
    if (role == LinearRole::kDown) continue;
    const int source = InputSource(architecture, index);
    at::Tensor inputs = input_max.at(source);
    at::Tensor weights = block.linears[index].weight.abs().amax(0);
    if (role == LinearRole::kAttentionOut) {
      inputs = ByValueHead(inputs, *config_).amax(1).reshape({-1});
      weights = ByValueHead(weights, *config_).amax(1).reshape({-1});
    }
    at::Tensor shift;
    if (const auto start = shifts.find(source); start != shifts.end() && TakesShift(group, block)) {
      const bool per_head = role == LinearRole::kAttentionOut;
      shift =
          (per_head ? ByValueHead(start->second, *config_).mean(1).reshape({-1}) : start->second)
              .clone()
              .requires_grad_(true);
    }
    groups_.push_back({group, InitialScale(inputs, weights, alpha).requires_grad_(true), shift});
    parameters_.push_back(groups_.back().scale);
    if (shift.defined()) parameters_.push_back(shift);
  }
  // A norm of queries and keys undoes any scale before it.
  if (architecture.NormIndex(NormRole::kQuery) >= 0) return;
  tied_ = tie_rope_pairs && architecture.positions == PositionKind::kRope;
  const int64_t channels = tied_ ? config_->kv_size() / 2 : config_->kv_size();
  query_key_ = at::ones({channels}, block.linears.at(0).weight.options()).requires_grad_(true);
  parameters_.push_back(query_key_);
}

void EquivalentTransform::KeepAway() {
  const at::NoGradGuard no_grad;
  const auto keep_away = [](at::Tensor& scale) {
    const at::Tensor small = scale.abs() < kLeastMagnitude;
    scale.copy_(at::where(small, scale.sign() * kLeastMagnitude, scale));
  };
  for (Group& group : groups_) keep_away(group.scale);
  if (query_key_.defined()) keep_away(query_key_);
}

// One scale for the channels i and i + head_dim / 2, which a rotary position
// mixes.
at::Tensor EquivalentTransform::KeyScale() const {
  if (!tied_) return query_key_;
  const at::Tensor half = query_key_.view({config_->num_kv_heads, config_->head_dim / 2});
  return at::cat({half, half}, 1).reshape({-1});
}

at::Tensor EquivalentTransform::QueryScale() const { return PerQueryHead(KeyScale(), *config_); }

void EquivalentTransform::ScaleQueryAndKey(Block& block) const {
  if (!query_key_.defined()) return;
  Linear& query = block.linears[block.architecture->LinearIndex(LinearRole::kQuery)];
  Linear& key = block.linears[block.architecture->LinearIndex(LinearRole::kKey)];
  query.weight = query.weight / QueryScale().unsqueeze(1);
  Divide(query.bias, QueryScale());
  key.weight = key.weight * KeyScale().unsqueeze(1);
  if (key.bias.defined()) key.bias = key.bias * KeyScale();
}

void EquivalentTransform::ShiftGroup(const Group& group, Block& block) const {
  if (!group.shift.defined()) return;
  at::Tensor& before = BiasBefore(group.group, block);
  before = before - group.shift;
  const at::Tensor columns =
      group.group.previous_is_norm ? group.shift : PerQueryHead(group.shift, *config_);
  for (const int index : group.group.linears) {
    Linear& linear = block.linears[index];
    linear.bias = linear.bias + at::mv(linear.weight, columns);
  }
}

void EquivalentTransform::ScaleGroup(const Group& group, const at::Tensor& scale,
                                     Block& block) const {
  at::Tensor columns = scale;
  if (group.group.previous_is_norm) {
    Norm& norm = *block.FindNorm(group.group.previous);
    norm.weight = norm.weight / scale;
    Divide(norm.bias, scale);
  } else {
    Linear& previous = block.linears.at(block.LinearIndex(group.group.previous));
    previous.weight = previous.weight / scale.unsqueeze(1);
    Divide(previous.bias, scale);
    columns = PerQueryHead(scale, *config_);
  }
  for (const int index : group.group.linears) {
    block.linears[index].weight = block.linears[index].weight * columns;
  }
}

Block EquivalentTransform::Apply(const Block& block) const {
  Block result = block;
  for (const Group& group : groups_) {
    ShiftGroup(group, result);
    ScaleGroup(group, group.scale, result);
  }
  ScaleQueryAndKey(result);
  return result;
}

Block EquivalentTransform::Bake(const Block& block,
                                const std::map<std::string, at::ScalarType>& dtypes) const {
  const at::NoGradGuard no_grad;
  Block result = block;
  for (const Group& group : groups_) {
    ShiftGroup(group, result);
    if (group.group.previous_is_norm) {
      FoldScale(group.group, group.scale.detach(), dtypes, result);
    } else {
      ScaleGroup(group, group.scale.detach(), result);
    }
  }
  ScaleQueryAndKey(result);
  for (Linear& linear : result.linears) {
    const std::string key = linear.name + ".bias";
    if (linear.bias.defined()) linear.bias = RoundToStorage(linear.bias, StorageDtype(dtypes, key));
  }
  return result;
}

}  // namespace quantry::engine
