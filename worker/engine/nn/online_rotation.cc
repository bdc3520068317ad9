#include "worker/engine/nn/online_rotation.h"

#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {

at::Tensor OnlineRotation::Apply(LinearRole role, const at::Tensor& x) const {
  if (role == LinearRole::kDown) return down.Apply(x);
  if (role != LinearRole::kAttentionOut || !attention) return x;
  if (attention->size() == x.size(-1)) return attention->Apply(x);
  const at::Tensor channels_first =
      x.reshape({-1, attention->size(), x.size(-1) / attention->size()}).transpose(1, 2);
  return attention->Apply(channels_first).transpose(1, 2).reshape(x.sizes());
}

OnlineRotation OnlineRotation::For(const ModelConfig& config) {
  std::optional<Hadamard> attention = Hadamard::OfSize(config.num_heads);
  if (!attention) attention = Hadamard::OfSize(config.query_size());
  return {std::move(attention), HadamardFor("intermediate_size", config.intermediate_size)};
}

bool OnlineRotation::IsWanted(const ModelConfig& config) {
  const nlohmann::json json = nlohmann::json::parse(config.json, nullptr, false);
  const auto rotation = json.find("quantry_rotation");
  if (rotation == json.end()) return false;
  const auto online = rotation->find("online");
  return online != rotation->end() && online->is_boolean() && online->get<bool>();
}

Hadamard HadamardFor(const char* what, int64_t n) {
  if (std::optional<Hadamard> found = Hadamard::OfSize(n)) return *std::move(found);
  throw UserError(
      "UNSUPPORTED_ARCHITECTURE",
      StrCat("rotation needs a Hadamard matrix of size ", n, " (", what,
             "): sizes K 2^m are known for K = 1, for K - 1 or K / 2 - 1 a fitting prime "
             "power, and for K = 172. Quantize this model without rotation"),
      {{"size", std::to_string(n)}, {"what", what}});
}

}  // namespace quantry::engine
