#include "worker/engine/methods/quarot/rotation.h"

#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "worker/engine/base/error.h"
#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

at::Tensor RandomSigns(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<double> signs(n);
  for (double& sign : signs) sign = (random.Next() >> 63) != 0 ? -1.0 : 1.0;
  return at::tensor(signs, at::kDouble);
}

// Whether a linear's output is added to the residual stream.
bool EndsInResidual(LinearRole role) {
  return role == LinearRole::kAttentionOut || role == LinearRole::kDown;
}

// The norm in front of a linear that reads the residual stream.
NormRole NormBefore(LinearRole role) {
  const bool attention =
      role == LinearRole::kQuery || role == LinearRole::kKey || role == LinearRole::kValue;
  return attention ? NormRole::kAttentionInput : NormRole::kMlpInput;
}

void Change(Block& block, LinearRole role, const auto& weight, const auto& bias) {
  Linear& linear = block.linears[block.architecture->LinearIndex(role)];
  linear.weight = weight(linear.weight.to(at::kDouble));
  if (linear.bias.defined()) linear.bias = bias(linear.bias.to(at::kDouble));
}

}  // namespace

Rotation::Rotation(const Architecture& architecture, const ModelConfig& config, bool online,
                   uint64_t seed)
    : residual_(HadamardFor("hidden_size", config.hidden_size)),
      head_(Hadamard::OfSize(config.head_dim)),
      signs_(RandomSigns(config.hidden_size, seed)) {
  if (architecture.norm_kind != NormKind::kRms) {
    throw UserError("UNSUPPORTED_ARCHITECTURE",
                    StrCat("rotation needs RMSNorm: the LayerNorm of ", architecture.name,
                           " subtracts a mean, which a rotation does not keep. Choose a method "
                           "without rotation; for tesseraq with quantized activations, an init "
                           "other than quarot"),
                    {{"architecture", architecture.name}});
  }
  if (online) online_ = OnlineRotation::For(config);
  // The whole vector is rotated online: nothing is left to do inside a head.
  const bool whole =
      online_ && online_->attention && online_->attention->size() != config.num_heads;
  if (whole) head_.reset();
}

nlohmann::json Rotation::Matrices() const {
  std::map<int64_t, nlohmann::json> by_size = {{residual_.size(), ToJson(residual_)}};
  const auto add = [&](const Hadamard& matrix) { by_size[matrix.size()] = ToJson(matrix); };
  if (head_) add(*head_);
  if (online_ && online_->attention) add(*online_->attention);
  if (online_) add(online_->down);
  auto matrices = nlohmann::json::array();
  for (const auto& [size, matrix] : by_size) matrices.push_back(matrix);
  return matrices;
}

at::Tensor Rotation::Residual(const at::Tensor& rows) const {
  return residual_.Apply(rows.to(at::kDouble) * signs_);
}

// Value rows and output columns of each head, both by the transform of
// head_dim; repeating kv heads for their queries commutes with it.
void Rotation::RotateHeads(const ModelConfig& config, Block& block) const {
  if (!head_) return;
  const int64_t dim = config.head_dim;
  const auto rows = [&](const at::Tensor& w) {
    return head_->Apply(w.t().reshape({-1, config.num_kv_heads, dim}))
        .reshape({-1, config.kv_size()})
        .t();
  };
  const auto bias = [&](const at::Tensor& b) {
    return head_->Apply(b.reshape({config.num_kv_heads, dim})).reshape({-1});
  };
  Change(block, LinearRole::kValue, rows, bias);
  const auto columns = [&](const at::Tensor& w) {
    return head_->Apply(w.reshape({w.size(0), config.num_heads, dim})).reshape(w.sizes());
  };
  Change(block, LinearRole::kAttentionOut, columns, [](const at::Tensor& b) { return b; });
}

// What undoes the rotations of the two linears' inputs.
void Rotation::FoldOnline(Block& block) const {
  for (const LinearRole role : {LinearRole::kAttentionOut, LinearRole::kDown}) {
    const auto rows = [&](const at::Tensor& w) { return online_->ApplyToRows(role, w); };
    Change(block, role, rows, [](const at::Tensor& b) { return b; });
  }
  block.online = std::make_shared<const OnlineRotation>(*online_);
}

Block Rotation::Rotate(const Block& block) const {
  const Architecture& architecture = *block.architecture;
  Block rotated = block;
  for (const LinearSpec& spec : architecture.linears) {
    if (EndsInResidual(spec.role)) {
      const auto outputs = [&](const at::Tensor& w) { return Residual(w.t()).t(); };
      Change(rotated, spec.role, outputs, [&](const at::Tensor& b) { return Residual(b); });
      continue;
    }
    const at::Tensor gain =
        block.norms[architecture.NormIndex(NormBefore(spec.role))].weight.to(at::kDouble);
    const auto inputs = [&](const at::Tensor& w) { return Residual(w * gain); };
    Change(rotated, spec.role, inputs, [](const at::Tensor& b) { return b; });
  }
  for (const NormRole role : {NormRole::kAttentionInput, NormRole::kMlpInput}) {
    at::Tensor& weight = rotated.norms[architecture.NormIndex(role)].weight;
    weight = at::ones_like(weight);
  }
  RotateHeads(*block.config, rotated);
  if (online_) FoldOnline(rotated);
  for (Linear& linear : rotated.linears) {
    linear.weight = linear.weight.to(at::kFloat).contiguous();
    if (linear.bias.defined()) linear.bias = linear.bias.to(at::kFloat);
  }
  return rotated;
}

}  // namespace quantry::engine
