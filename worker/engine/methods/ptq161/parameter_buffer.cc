#include "worker/engine/methods/ptq161/parameter_buffer.h"

#include "worker/engine/base/error.h"

namespace quantry::engine {

ParameterBuffer::ParameterBuffer(int64_t elements, const at::Device& device) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  values_ = at::zeros({elements}, options);
  grads_ = at::zeros({elements}, options);
  rates_ = at::zeros({elements}, options);
}

Parameter ParameterBuffer::Add(const at::Tensor& initial, double rate) {
  const int64_t count = initial.numel();
  if (used_ + count > values_.size(0)) {
    throw EngineError(FailureClass::kBug, "INTERNAL", "the parameter buffer is too small");
  }
  Parameter parameter{values_.narrow(0, used_, count), grads_.narrow(0, used_, count)};
  parameter.value.copy_(initial);
  rates_.narrow(0, used_, count).fill_(rate);
  used_ += count;
  return parameter;
}

Adam OptimizerOf(const ParameterBuffer& buffer) {
  Adam adam;
  adam.Add(buffer.values(), buffer.rates());
  return adam;
}

}  // namespace quantry::engine
