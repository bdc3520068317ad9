#include "worker/engine/nn/online_rotation.h"

#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

// config.json's "quantry_rotation", {} in a model that is not rotated.
nlohmann::json RotationOf(const ModelConfig& config) {
  const auto json = nlohmann::json::parse(config.json, nullptr, false);
  const auto rotation = json.find("quantry_rotation");
  const bool there = rotation != json.end() && rotation->is_object();
  return there ? *rotation : nlohmann::json::object();
}

// Models of versions that listed no matrices pass.
void CheckSame(const Hadamard& hadamard, const nlohmann::json& made_with) {
  const nlohmann::json ours = ToJson(hadamard);
  for (const auto& theirs : made_with) {
    if (!theirs.is_object() || theirs.value("size", ours["size"]) != ours["size"]) continue;
    if (theirs == ours) continue;
    throw UserError(
        "UNSUPPORTED_ARCHITECTURE",
        StrCat("this model was rotated with the Hadamard matrix ", theirs.dump(),
               " (quantry_rotation in its config.json), and this version has only ", ours.dump(),
               ": run it with the version of quantry that made it, or "
               "quantize the original model again"),
        {{"size", std::to_string(hadamard.size())}});
  }
}

}  // namespace

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
  OnlineRotation online = {std::move(attention),
                           HadamardFor("intermediate_size", config.intermediate_size)};
  const nlohmann::json made_with = RotationOf(config).value("hadamard", nlohmann::json::array());
  if (online.attention) CheckSame(*online.attention, made_with);
  CheckSame(online.down, made_with);
  return online;
}

bool OnlineRotation::IsWanted(const ModelConfig& config) {
  const nlohmann::json rotation = RotationOf(config);
  const auto online = rotation.find("online");
  return online != rotation.end() && online->is_boolean() && online->get<bool>();
}

nlohmann::json ToJson(const Hadamard& hadamard) {
  return {{"size", hadamard.size()},
          {"order", hadamard.order()},
          {"construction", hadamard.construction()}};
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
