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

class Bfloat16Linear : public torch::autograd::Function<Bfloat16Linear> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight) {
    const at::Tensor rows = Factor(Flat(x), ComputeDtype::kBfloat16);
    const at::Tensor columns = Factor(weight, ComputeDtype::kBfloat16);
    context->save_for_backward({rows, columns});
    return Product(rows, columns.t()).view(ShapeWith(x, weight.size(0)));
  }

  static variable_list backward(AutogradContext* context, const variable_list& slopes) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor slope = Factor(Flat(slopes[0]), ComputeDtype::kBfloat16);
    at::Tensor dx, dw;
    if (context->needs_input_grad(0)) {
      dx = Product(slope, saved[1]).view(ShapeWith(slopes[0], saved[1].size(1)));
    }
    if (context->needs_input_grad(1)) dw = Product(slope.t(), saved[0]);
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
