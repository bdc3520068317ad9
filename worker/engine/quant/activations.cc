#include "worker/engine/quant/activations.h"

#include <torch/csrc/autograd/custom_function.h>

#include <string>

#include "worker/engine/base/error.h"

namespace quantry::engine {
namespace {

constexpr double kMinTokenRange = 1e-5;

at::Tensor Quantized(const at::Tensor& x, int bits) {
  const auto qmax = static_cast<double>((int64_t{1} << bits) - 1);
  auto [lo, hi] = at::aminmax(x, -1, /*keepdim=*/true);
  lo.clamp_max_(0.0);
  hi.clamp_min_(0.0);
  const at::Tensor scale = hi.sub_(lo).clamp_min_(kMinTokenRange).div_(qmax);
  const at::Tensor zero = lo.div_(scale).round_().neg_().clamp_(0.0, qmax);
  return x.div(scale).round_().add_(zero).clamp_(0.0, qmax).sub_(zero).mul_(scale);
}

// The rounded value forward, the gradient unchanged backward.
class StraightThrough : public torch::autograd::Function<StraightThrough> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x, int64_t bits) {
    return Quantized(x, static_cast<int>(bits));
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 const torch::autograd::variable_list& gradients) {
    return {gradients.at(0), at::Tensor()};
  }
};

}  // namespace

at::Tensor FakeQuantizeActivations(const at::Tensor& x, int bits) {
  if (bits >= 16) return x;
  if (at::GradMode::is_enabled() && x.requires_grad()) return StraightThrough::apply(x, bits);
  return Quantized(x, bits);
}

void CheckActivations(const ActivationSpec& spec) {
  if (spec.bits == 16 || (spec.bits >= 2 && spec.bits <= 8)) return;
  const std::string got = std::to_string(spec.bits);
  throw UserError("INVALID_SPEC",
                  "activations.bits must be 2 to 8, or 16 to leave activations alone, got " + got,
                  {{"bits", got}});
}

}  // namespace quantry::engine
