#include "worker/engine/nn/block.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/engine/nn/attention.h"
#include "worker/engine/nn/fused.h"
#include "worker/engine/nn/online_rotation.h"
#include "worker/engine/nn/transformer.h"

namespace quantry::engine {
namespace {

// Attention scores held at once, 8 MiB: what bounds attention's memory for
// long sequences.
constexpr int64_t kMaxScores = int64_t{1} << 21;
// Queries of one slice. Keys after a slice's last query are never touched, so
// smaller slices save products; much smaller ones waste the caches.
constexpr int64_t kMaxQueries = 128;

at::Tensor Activate(Activation activation, const at::Tensor& x) {
  switch (activation) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kGelu:
      return at::gelu(x, "none");
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
  }
  return x;
}

// Attention of queries first..first + rows - 1 over the keys up to themselves.
// q: [groups, share, rows, d], k and v: [groups, first + rows, d].
at::Tensor AttendRows(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      int64_t first) {
  const int64_t groups = q.size(0), share = q.size(1), rows = q.size(2), keys = k.size(1);
  at::Tensor scores = at::bmm(q.reshape({groups, share * rows, q.size(3)}), k.transpose(1, 2))
                          .view({groups, share, rows, keys});
  if (rows > 1) {  // the last query sees every key
    const at::Tensor mask =
        at::full({rows, keys}, -std::numeric_limits<float>::infinity(), q.options())
            .triu_(first + 1);
    // In place only where autograd does not watch: it would keep a copy.
    scores = scores.requires_grad() ? scores + mask : scores.add_(mask);
  }
  return at::bmm(at::softmax(scores, -1).view({groups, share * rows, keys}), v).view(q.sizes());
}

// Causal softmax(q k^T / sqrt(d)) v. q: [batch, heads, tokens, d]; k, v:
// [batch, kv_heads, past + tokens, d]; each kv head serves heads / kv_heads
// queries, its group. Explicit products: at::scaled_dot_product_attention's CPU kernel
// uses a coarser exponential.
at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           ComputeDtype compute) {
  if (FusedAttentionApplies(q, k)) return FusedCausalAttention(q, k, v, compute);
  const int64_t tokens = q.size(2), dim = q.size(3), share = q.size(1) / k.size(1);
  const int64_t groups = k.size(0) * k.size(1), all = k.size(2), past = all - tokens;
  const at::Tensor queries =
      (q / std::sqrt(static_cast<double>(dim))).reshape({groups, share, tokens, dim});
  const at::Tensor keys = k.reshape({groups, all, dim});
  const at::Tensor values = v.reshape({groups, all, dim});
  const int64_t rows =
      std::clamp<int64_t>(kMaxScores / (share * all), 1, std::min(tokens, kMaxQueries));
  const int64_t step = std::max<int64_t>(1, kMaxScores / (share * rows * all));
  std::vector<at::Tensor> slices;
  for (int64_t g = 0; g < groups; g += step) {
    const int64_t n = std::min(step, groups - g);
    std::vector<at::Tensor> parts;
    for (int64_t first = 0; first < tokens; first += rows) {
      const int64_t count = std::min(rows, tokens - first);
      parts.push_back(AttendRows(queries.narrow(0, g, n).narrow(2, first, count),
                                 keys.narrow(0, g, n).narrow(1, 0, past + first + count),
                                 values.narrow(0, g, n).narrow(1, 0, past + first + count),
                                 past + first));
    }
    slices.push_back(parts.size() == 1 ? parts[0] : at::cat(parts, 2));
  }
  return (slices.size() == 1 ? slices[0] : at::cat(slices, 0)).view(q.sizes());
}

}  // namespace

at::Tensor ApplyNorm(const Norm& norm, NormKind kind, double eps, const at::Tensor& x) {
  if (kind == NormKind::kLayer) {
    return at::layer_norm(x, norm.weight.sizes(), norm.weight, norm.bias, eps,
                          /*cudnn_enable=*/false);
  }
  return RmsNorm(x, norm.weight, eps);
}

at::Tensor Block::Apply(int i, const at::Tensor& x) const {
  const Linear& linear = linears.at(i);
  const at::Tensor input = FakeQuantizeActivations(x, activations.bits);
  if (linear.product) return linear.product(input);
  return LinearProduct(input, linear.weight, linear.bias, compute);
}

at::Tensor Block::Product(LinearRole role, const at::Tensor& x, const LinearForward& linear) const {
  const int i = architecture->LinearIndex(role);
  const at::Tensor input = online ? online->Apply(role, x) : x;
  return linear ? linear(i, input) : Apply(i, input);
}

bool Block::MultipliesWeights(const std::vector<LinearRole>& roles,
                              const LinearForward& linear) const {
  return !linear && std::none_of(roles.begin(), roles.end(), [&](LinearRole role) {
    return static_cast<bool>(linears.at(architecture->LinearIndex(role)).product);
  });
}

std::vector<at::Tensor> Block::Products(const std::vector<LinearRole>& roles, const at::Tensor& x,
                                        const LinearForward& linear) const {
  if (!MultipliesWeights(roles, linear)) {
    std::vector<at::Tensor> outputs;
    for (const LinearRole role : roles) outputs.push_back(Product(role, x, linear));
    return outputs;
  }
  std::vector<at::Tensor> weights, biases;
  for (const LinearRole role : roles) {
    const Linear& own = linears.at(architecture->LinearIndex(role));
    weights.push_back(own.weight);
    biases.push_back(own.bias);
  }
  return LinearProducts(FakeQuantizeActivations(x, activations.bits), weights, biases, compute);
}

at::Tensor Block::Attention(const at::Tensor& normed, const RopeTable& rope,
                            const LinearForward& linear, KeyValueCache* cache) const {
  const int64_t batch = normed.size(0), tokens = normed.size(1);
  const std::vector<at::Tensor> products =
      Products({LinearRole::kQuery, LinearRole::kKey, LinearRole::kValue}, normed, linear);
  const auto heads = [&](int i, int64_t count) {
    return products[i].view({batch, tokens, count, config->head_dim});
  };
  const auto norm_heads = [&](NormRole role, const at::Tensor& x) {
    const int i = architecture->NormIndex(role);
    return i < 0 ? x : ApplyNorm(norms.at(i), architecture->norm_kind, config->norm_eps, x);
  };
  at::Tensor q = heads(0, config->num_heads);
  at::Tensor k = heads(1, config->num_kv_heads);
  at::Tensor v = heads(2, config->num_kv_heads).transpose(1, 2);
  q = norm_heads(NormRole::kQuery, q).transpose(1, 2);
  k = norm_heads(NormRole::kKey, k).transpose(1, 2);
  if (rope.defined()) {
    const int64_t first = cache != nullptr ? cache->length : 0;
    q = rope.Apply(q, first);
    k = rope.Apply(k, first);
  }
  if (cache != nullptr) cache->Append(&k, &v);
  const at::Tensor mixed = CausalAttention(q, k, v, compute);
  return Product(LinearRole::kAttentionOut,
                 mixed.transpose(1, 2).reshape({batch, tokens, config->query_size()}), linear);
}

// activation(x gate^T) * (x up^T)
at::Tensor Block::GatedInner(const at::Tensor& normed, const LinearForward& linear) const {
  const std::vector<LinearRole> roles = {LinearRole::kGate, LinearRole::kUp};
  const Linear& gate = linears.at(architecture->LinearIndex(LinearRole::kGate));
  const Linear& up = linears.at(architecture->LinearIndex(LinearRole::kUp));
  const bool silu = config->activation == Activation::kSilu;
  const bool biased = gate.bias.defined() || up.bias.defined();
  if (silu && !biased && compute == ComputeDtype::kBfloat16 && MultipliesWeights(roles, linear)) {
    return GatedSiluProducts(FakeQuantizeActivations(normed, activations.bits), gate.weight,
                             up.weight);
  }
  const std::vector<at::Tensor> both = Products(roles, normed, linear);
  return silu ? GatedSilu(both[0], both[1]) : Activate(config->activation, both[0]) * both[1];
}

at::Tensor Block::Mlp(const at::Tensor& normed, const LinearForward& linear) const {
  if (!architecture->gated_mlp) {
    const at::Tensor up = Product(LinearRole::kUp, normed, linear);
    return Product(LinearRole::kDown, Activate(config->activation, up), linear);
  }
  const at::Tensor inner = GatedInner(normed, linear);
  return Product(LinearRole::kDown, inner, linear);
}

at::Tensor Block::Forward(const at::Tensor& hidden, const RopeTable& rope,
                          const LinearForward& linear, KeyValueCache* cache) const {
  const auto norm = [&](NormRole role, const at::Tensor& x) {
    return ApplyNorm(norms.at(architecture->NormIndex(role)), architecture->norm_kind,
                     config->norm_eps, x);
  };
  const at::Tensor middle =
      hidden + Attention(norm(NormRole::kAttentionInput, hidden), rope, linear, cache);
  return middle + Mlp(norm(NormRole::kMlpInput, middle), linear);
}

KeyValueCache KeyValueCache::For(const ModelConfig& config, int64_t batch, int64_t capacity,
                                 const at::Device& device) {
  const auto room = [&] {
    return at::empty({batch, config.num_kv_heads, capacity, config.head_dim},
                     at::TensorOptions().dtype(at::kFloat).device(device));
  };
  return {room(), room(), 0};
}

void KeyValueCache::Append(at::Tensor* k, at::Tensor* v) {
  const int64_t tokens = k->size(2);
  keys.narrow(2, length, tokens).copy_(*k);
  values.narrow(2, length, tokens).copy_(*v);
  length += tokens;
  *k = keys.narrow(2, 0, length);
  *v = values.narrow(2, 0, length);
}

int Block::LinearIndex(const std::string& name) const {
  for (size_t i = 0; i < linears.size(); ++i) {
    if (linears[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

Norm* Block::FindNorm(const std::string& name) {
  for (Norm& norm : norms) {
    if (norm.name == name) return &norm;
  }
  return nullptr;
}

namespace {

template <typename Change>
Block Changed(const Block& block, const Change& change) {
  Block result = block;
  for (Linear& linear : result.linears) {
    if (linear.weight.defined()) linear.weight = change(linear.weight);
    if (linear.bias.defined()) linear.bias = change(linear.bias);
  }
  for (Norm& norm : result.norms) {
    norm.weight = change(norm.weight);
    if (norm.bias.defined()) norm.bias = change(norm.bias);
  }
  return result;
}

}  // namespace

Block Block::Clone() const {
  return Changed(*this, [](const at::Tensor& t) { return t.clone(); });
}

Block Block::To(const at::Device& device) const {
  return Changed(*this, [&](const at::Tensor& t) { return t.to(device); });
}

int64_t Block::Parameters() const {
  int64_t total = 0;
  Changed(*this, [&](const at::Tensor& t) {
    total += t.numel();
    return t;
  });
  return total;
}

}  // namespace quantry::engine
