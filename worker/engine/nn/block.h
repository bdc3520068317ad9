#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "worker/engine/model/architecture.h"
#include "worker/engine/model/config.h"
#include "worker/engine/nn/products.h"
#include "worker/engine/nn/rope.h"
#include "worker/engine/quant/activations.h"

namespace quantry::engine {

// y = x W^T + b. Values fp32, on the block's device.
struct Linear {
  std::string name;   // below the block: "self_attn.q_proj"
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out], undefined when there is none
  // Stands for x W^T + b when set: a weight that is never built. `weight` is
  // undefined then. Thread-safe.
  std::function<at::Tensor(const at::Tensor& x)> product;
};

// Keys and values of the tokens a block has seen, for going on token by token.
struct KeyValueCache {
  at::Tensor keys;     // [batch, kv_heads, capacity, head_dim], rotated
  at::Tensor values;   // [batch, kv_heads, capacity, head_dim]
  int64_t length = 0;  // tokens in it

  static KeyValueCache For(const ModelConfig& config, int64_t batch, int64_t capacity,
                           const at::Device& device = at::kCPU);
  // Puts in k, v [batch, kv_heads, tokens, head_dim], which become all there is.
  void Append(at::Tensor* k, at::Tensor* v);
};

// Scale (and shift) of a normalisation.
struct Norm {
  std::string name;   // below the block: "input_layernorm"
  at::Tensor weight;  // [n]
  at::Tensor bias;    // [n], undefined for RMSNorm
};

// Replaces one linear's product during a forward pass: index into
// Block::linears and the input x [batch, tokens, in], not quantized; returns
// [batch, tokens, out]. Methods hook inputs or put trainable weights in this
// way. What Apply does to its input (Block::activations) is then theirs to do.
using LinearForward = std::function<at::Tensor(int index, const at::Tensor& x)>;

struct OnlineRotation;

// One transformer block in fp32, loaded from a checkpoint. Plain data plus a
// forward pass; copying shares tensors, Clone() does not. Not thread-safe for
// writes. Differentiable: Forward uses out-of-place ATen ops only.
class Block {
 public:
  // The arrangement comes from the architecture row: which linear is the
  // query projection, whether the MLP is gated, which norms exist.
  const Architecture* architecture = nullptr;
  const ModelConfig* config = nullptr;
  int index = 0;
  std::vector<Linear> linears;  // in the order of architecture->linears
  std::vector<Norm> norms;      // in the order of architecture->norms (those present)
  // Of a rotated checkpoint's blocks: turns the inputs of two linears before
  // anything, hooks included, sees them.
  std::shared_ptr<const OnlineRotation> online;
  // How Apply quantizes its input: off in a loaded block, on in a quantized one
  // of a job with quantized activations.
  ActivationSpec activations;
  // Of the products Apply and attention make: bfloat16 in training steps that ask for it.
  ComputeDtype compute = ComputeDtype::kFloat32;
  Block Computing(ComputeDtype dtype) const {  // this one with `dtype`
    Block block = *this;
    block.compute = dtype;
    return block;
  }

  // Output hidden states. hidden: [batch, tokens, hidden_size], causal mask,
  // positions 0..tokens-1. `linear` empty = plain products. With a cache the
  // tokens come after those in it, see them, and are added to it.
  at::Tensor Forward(const at::Tensor& hidden, const RopeTable& rope,
                     const LinearForward& linear = {}, KeyValueCache* cache = nullptr) const;

  // One part alone, its input already normalised. For methods that compare a
  // module's output (AWQ): attention or MLP without residual.
  at::Tensor Attention(const at::Tensor& normed, const RopeTable& rope,
                       const LinearForward& linear = {}, KeyValueCache* cache = nullptr) const;
  at::Tensor Mlp(const at::Tensor& normed, const LinearForward& linear = {}) const;

  // y = q(x) W^T + b of linears[i], where q quantizes as `activations` says.
  at::Tensor Apply(int i, const at::Tensor& x) const;

  int LinearIndex(const std::string& name) const;  // -1 when absent
  Norm* FindNorm(const std::string& name);         // nullptr when absent
  Block Clone() const;
  Block To(const at::Device& device) const;
  int64_t Parameters() const;

 private:
  // The product of one linear: online rotation, then the hook or Apply.
  at::Tensor Product(LinearRole role, const at::Tensor& x, const LinearForward& linear) const;
  // Whether nothing stands in for these linears' products with their weights.
  bool MultipliesWeights(const std::vector<LinearRole>& roles, const LinearForward& linear) const;
  // Those of linears with one input, which is quantized and rounded once where no hook sees it.
  std::vector<at::Tensor> Products(const std::vector<LinearRole>& roles, const at::Tensor& x,
                                   const LinearForward& linear) const;
  // The input of a gated MLP's down projection.
  at::Tensor GatedInner(const at::Tensor& normed, const LinearForward& linear) const;
};

}  // namespace quantry::engine
