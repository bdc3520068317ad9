#include "worker/engine/nn/products.h"

#include <torch/csrc/autograd/custom_function.h>

namespace quantry::engine {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor Flat(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}); }

std::vector<int64_t> ShapeWith(const at::Tensor& like, int64_t last) {
  std::vector<int64_t> shape = like.sizes().vec();
  shape.back() = last;
  return shape;
}

at::Tensor Rounded(const at::Tensor& value) { return Factor(value, ComputeDtype::kBfloat16); }

// Keeps what at::linear keeps, and rounds it again: copies of every share's weights
// and of every linear's input would be more than the cast costs.
class Bfloat16Linear : public torch::autograd::Function<Bfloat16Linear> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight) {
    context->save_for_backward({x, weight});
    return Product(Rounded(Flat(x)), Rounded(weight).t()).view(ShapeWith(x, weight.size(0)));
  }

  static variable_list backward(AutogradContext* context, const variable_list& slopes) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const at::Tensor slope = Rounded(Flat(slopes[0]));
    at::Tensor dx, dw;
    if (context->needs_input_grad(0)) {
      dx = Product(slope, Rounded(weight)).view(ShapeWith(slopes[0], weight.size(1)));
    }
    if (context->needs_input_grad(1)) dw = Product(slope.t(), Rounded(Flat(x)));
    return {dx, dw};
  }
};

}  // namespace

bool MultipliesBfloat16(const at::Device& device) {
#ifdef __x86_64__
  static const bool kCpu = __builtin_cpu_supports("avx512bf16") != 0;
#else
  constexpr bool kCpu = false;
#endif
  return device.is_cpu() ? kCpu : true;
}

at::Tensor Factor(const at::Tensor& value, ComputeDtype dtype) {
  if (dtype == ComputeDtype::kFloat32) return value;
  const at::Tensor rounded = value.to(at::kBFloat16);
  return MultipliesBfloat16(value.device()) ? rounded : rounded.to(at::kFloat);
}

at::Tensor Product(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor product = at::mm(a, b);
  return product.scalar_type() == at::kBFloat16 ? product.to(at::kFloat) : product;
}

at::Tensor LinearProduct(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         ComputeDtype dtype) {
  if (dtype == ComputeDtype::kFloat32) {
    return bias.defined() ? at::linear(x, weight, bias) : at::linear(x, weight);
  }
  const at::Tensor y = Bfloat16Linear::apply(x, weight);
  return bias.defined() ? y + bias : y;
}

}  // namespace quantry::engine
