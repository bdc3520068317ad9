#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "worker/engine/reconstruct/adam.h"

namespace quantry::engine {

// A trained vector and its gradient: views into a ParameterBuffer.
struct Parameter {
  at::Tensor value;
  at::Tensor grad;
};

// All trained numbers of a block in one flat fp32 vector, so that an optimizer
// step is a handful of operations however many linears there are. Groups are
// added one after the other, each with a learning rate of its own.
class ParameterBuffer {
 public:
  explicit ParameterBuffer(int64_t elements, const at::Device& device);

  // Place of the next `initial.numel()` values. Throws BUG when full.
  Parameter Add(const at::Tensor& initial, double rate);
  int64_t size() const { return used_; }

  const at::Tensor& values() const { return values_; }
  const at::Tensor& grads() const { return grads_; }
  // [size], the learning rate of every value.
  const at::Tensor& rates() const { return rates_; }

 private:
  at::Tensor values_;
  at::Tensor grads_;
  at::Tensor rates_;
  int64_t used_ = 0;
};

// AdamW without weight decay (spec: ptq161.md 4.2) over the whole buffer; its
// Step takes {buffer.grads()}.
Adam OptimizerOf(const ParameterBuffer& buffer);

}  // namespace quantry::engine
