#include "worker/engine/model/architecture.h"
#include "worker/engine/model/config.h"

namespace quantry::engine {

LinearShape ShapeOf(const ModelConfig& config, LinearRole role) {
  switch (role) {
    case LinearRole::kQuery:
      return {config.query_size(), config.hidden_size};
    case LinearRole::kKey:
    case LinearRole::kValue:
      return {config.kv_size(), config.hidden_size};
    case LinearRole::kAttentionOut:
      return {config.hidden_size, config.query_size()};
    case LinearRole::kGate:
    case LinearRole::kUp:
      return {config.intermediate_size, config.hidden_size};
    case LinearRole::kDown:
      return {config.hidden_size, config.intermediate_size};
  }
  return {};
}

bool HasBias(const ModelConfig& config, const LinearSpec& linear) {
  switch (linear.bias) {
    case BiasRule::kNever:
      return false;
    case BiasRule::kAlways:
      return true;
    case BiasRule::kAttentionBias:
      return config.attention_bias;
    case BiasRule::kMlpBias:
      return config.mlp_bias;
  }
  return false;
}

int64_t SizeOf(const ModelConfig& config, NormRole role) {
  const bool per_head = role == NormRole::kQuery || role == NormRole::kKey;
  return per_head ? config.head_dim : config.hidden_size;
}

std::vector<SmoothingGroup> UsableSmoothingGroups(const Architecture& architecture,
                                                  const ModelConfig& config) {
  std::vector<SmoothingGroup> usable;
  for (const SmoothingGroup& group : architecture.smoothing_groups) {
    bool fits = !group.through_activation || config.activation == Activation::kRelu;
    if (!group.previous_is_norm) {
      const int64_t in = ShapeOf(config, architecture.linears[group.linears.front()].role).in;
      for (const LinearSpec& linear : architecture.linears) {
        if (linear.name == group.previous) fits = fits && ShapeOf(config, linear.role).out == in;
      }
    }
    if (fits) usable.push_back(group);
  }
  return usable;
}

}  // namespace quantry::engine
