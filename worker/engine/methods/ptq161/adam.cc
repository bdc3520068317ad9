#include "worker/engine/methods/ptq161/adam.h"

#include <cmath>

#include "worker/engine/base/error.h"

namespace quantry::engine {
namespace {

constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.999;
constexpr double kEps = 1e-8;

}  // namespace

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

BufferAdam::BufferAdam(const ParameterBuffer& buffer)
    : buffer_(buffer),
      first_(at::zeros_like(buffer.values())),
      second_(at::zeros_like(buffer.values())) {}

void BufferAdam::Step(double rate_scale) {
  ++steps_;
  const at::Tensor& grads = buffer_.grads();
  first_.lerp_(grads, 1.0 - kBeta1);
  second_.mul_(kBeta2).addcmul_(grads, grads, 1.0 - kBeta2);
  const auto steps = static_cast<double>(steps_);
  const double correct1 = 1.0 - std::pow(kBeta1, steps);
  const double correct2 = 1.0 - std::pow(kBeta2, steps);
  const at::Tensor scale = second_.sqrt().div_(std::sqrt(correct2)).add_(kEps);
  at::Tensor values = buffer_.values();
  values.addcdiv_(first_ * buffer_.rates(), scale, -rate_scale / correct1);
}

}  // namespace quantry::engine
