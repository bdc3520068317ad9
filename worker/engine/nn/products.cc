#include "worker/engine/nn/products.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "worker/engine/base/parallel.h"
#include "worker/engine/nn/bfloat16_kernels.h"
#include "worker/engine/nn/fused.h"

namespace quantry::engine {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Row by row convert(from, count, to) of two matrices of one shape, whose rows may lie apart;
// by several threads where there is much to do. In place of LibTorch's casts this spares 5 % of a
// small model's step, 3 % of PTQ1.61's.
template <typename From, typename To, typename Convert>
void ConvertRows(const at::Tensor& from, const at::Tensor& to, const Convert& convert) {
  constexpr int64_t kAtOnce = 4096;
  const auto* source = static_cast<const From*>(from.const_data_ptr());
  auto* target = static_cast<To*>(to.mutable_data_ptr());
  int64_t rows = from.size(0), columns = from.size(1);
  int64_t from_row = from.stride(0), to_row = to.stride(0);
  if (from.is_contiguous() && to.is_contiguous()) {  // as long rows
    columns = rows * columns;
    rows = 1;
  }
  const int64_t pieces = (columns + kAtOnce - 1) / kAtOnce, piece = std::min(columns, kAtOnce);
  ForEachIndex(rows * pieces, std::max<int64_t>(1, 8 * kAtOnce / std::max<int64_t>(1, piece)),
               [&](int64_t i) {
                 const int64_t row = i / pieces, begin = i % pieces * kAtOnce;
                 convert(source + row * from_row + begin, std::min(kAtOnce, columns - begin),
                         target + row * to_row + begin);
               });
}

bool HasKernels(const at::Tensor& value) { return value.is_cpu() && simd::HasBfloat16(); }

// A matrix with unit stride along its rows, also one without columns.
at::Tensor Flat(const at::Tensor& x) { return x.contiguous().flatten(0, -2); }

// to = fp32 `from` rounded to bfloat16; `to` is a matrix in the type of factors.
void Round(const at::Tensor& from, const at::Tensor& to) {
  if (to.scalar_type() != at::kBFloat16) {
    to.copy_(from.to(at::kBFloat16));
  } else if (HasKernels(to)) {
    ConvertRows<float, uint16_t>(from.stride(1) == 1 ? from : from.contiguous(), to,
                                 simd::RoundToBfloat16);
  } else {
    to.copy_(from);
  }
}

at::ScalarType FactorType(const at::Device& device) {
  return MultipliesBfloat16(device) ? at::kBFloat16 : at::kFloat;
}

// fp32 copy of a matrix of products.
at::Tensor Widened(const at::Tensor& from) {
  const at::Tensor to = at::empty(from.sizes(), from.options().dtype(at::kFloat));
  if (from.scalar_type() == at::kBFloat16 && HasKernels(from)) {
    ConvertRows<uint16_t, float>(from, to, simd::WidenBfloat16);
  } else {
    to.copy_(from);
  }
  return to;
}

// Factors of `parts`, matrices of as many rows (along = 1) or columns (along = 0), side by side.
at::Tensor RoundedTogether(at::TensorList parts, int64_t along) {
  std::vector<int64_t> sizes = parts[0].sizes().vec();
  sizes[along] = 0;
  for (const at::Tensor& part : parts) sizes[along] += part.size(along);
  const at::Tensor all = at::empty(sizes, parts[0].options().dtype(FactorType(parts[0].device())));
  int64_t first = 0;
  for (const at::Tensor& part : parts) {
    Round(part, all.narrow(along, first, part.size(along)));
    first += part.size(along);
  }
  return all;
}

std::vector<int64_t> ShapeWith(const at::Tensor& like, int64_t last) {
  std::vector<int64_t> shape = like.sizes().vec();
  shape.back() = last;
  return shape;
}

// Several linears of one input as one product with all of their rows. Keeps the rounded input,
// half of what at::linear keeps, and rounds the weights again: copies of every share's would be
// more than the cast costs.
struct SharedInput {
  static SharedInput Of(const at::Tensor& x, at::TensorList weights) {
    return {Factor(Flat(x), ComputeDtype::kBfloat16), weights.vec()};
  }

  at::Tensor rows;                  // x, a factor
  std::vector<at::Tensor> weights;  // [out, in]

  // [tokens, all outs], in the type of factors.
  at::Tensor Products() const { return at::mm(rows, RoundedTogether(weights, 0).t()); }

  // Of x and each weight, as far as they are wanted, along slopes [tokens, all outs], a factor.
  variable_list Gradients(const AutogradContext& context, const at::Tensor& slopes,
                          const std::vector<int64_t>& shape) const {
    variable_list gradients(1 + weights.size());
    if (context.needs_input_grad(0)) {
      gradients[0] = Product(slopes, RoundedTogether(weights, 0)).view(shape);
    }
    bool wanted = false;
    for (size_t i = 1; i < gradients.size(); ++i) wanted = wanted || context.needs_input_grad(i);
    if (!wanted) return gradients;
    const at::Tensor dw = Product(slopes.t(), rows);
    int64_t first = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      gradients[i + 1] = dw.narrow(0, first, weights[i].size(0));
      first += weights[i].size(0);
    }
    return gradients;
  }
};

variable_list With(variable_list list, at::TensorList more) {
  list.insert(list.end(), more.begin(), more.end());
  return list;
}

class Bfloat16Linears : public torch::autograd::Function<Bfloat16Linears> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               at::TensorList weights) {
    const SharedInput shared = SharedInput::Of(x, weights);
    context->save_for_backward(With({shared.rows}, weights));
    const at::Tensor products = shared.Products();
    variable_list outputs;
    int64_t first = 0;
    for (const at::Tensor& weight : weights) {
      const int64_t count = weight.size(0);
      outputs.push_back(Widened(products.narrow(1, first, count)).view(ShapeWith(x, count)));
      first += count;
    }
    return outputs;
  }

  static variable_list backward(AutogradContext* context, const variable_list& slopes) {
    const variable_list saved = context->get_saved_variables();
    const SharedInput shared = {saved[0], {saved.begin() + 1, saved.end()}};
    variable_list parts;
    for (const at::Tensor& slope : slopes) parts.push_back(Flat(slope));
    return shared.Gradients(*context, RoundedTogether(parts, 1),
                            ShapeWith(slopes[0], saved[1].size(1)));
  }
};

// Gate and up side by side, [tokens, 2 out] in bfloat16, never widened.
class Bfloat16GatedSilu : public torch::autograd::Function<Bfloat16GatedSilu> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& gate,
                            const at::Tensor& up) {
    const SharedInput shared = SharedInput::Of(x, {gate, up});
    const at::Tensor both = shared.Products();
    context->save_for_backward({shared.rows, gate, up, both});
    const int64_t width = gate.size(0);
    const at::Tensor out = at::empty(ShapeWith(x, width), x.options());
    const auto* from = Bits(both);
    auto* to = out.mutable_data_ptr<float>();
    ForEachIndex(both.size(0), kRowsAtOnce, [&](int64_t i) {
      const uint16_t* row = from + i * 2 * width;
      simd::GatedSiluOf(row, row + width, width, to + i * width);
    });
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& slopes) {
    const variable_list saved = context->get_saved_variables();
    const SharedInput shared = {saved[0], {saved[1], saved[2]}};
    const at::Tensor &both = saved[3], slope = slopes[0].contiguous();
    const int64_t width = saved[1].size(0);
    const at::Tensor along = at::empty_like(both);
    const auto* from = Bits(both);
    const auto* s = slope.const_data_ptr<float>();
    auto* to = static_cast<uint16_t*>(along.mutable_data_ptr());
    ForEachIndex(both.size(0), kRowsAtOnce, [&](int64_t i) {
      const uint16_t* row = from + i * 2 * width;
      uint16_t* slope_row = to + i * 2 * width;
      simd::GatedSiluSlopeOf(row, row + width, s + i * width, width, slope_row, slope_row + width);
    });
    return shared.Gradients(*context, along, ShapeWith(slope, saved[1].size(1)));
  }

 private:
  static constexpr int64_t kRowsAtOnce = 32;
  static const uint16_t* Bits(const at::Tensor& x) {
    return static_cast<const uint16_t*>(x.const_data_ptr());
  }
};

}  // namespace

bool MultipliesBfloat16(const at::Device& device) {
  return !device.is_cpu() || simd::HasBfloat16();
}

ComputeDtype ComputeOn(const at::Device& device, ComputeChoice choice) {
  const bool fast = device.is_cpu() && MultipliesBfloat16(device);
  return choice.value_or(fast ? ComputeDtype::kBfloat16 : ComputeDtype::kFloat32);
}

at::Tensor Factor(const at::Tensor& value, ComputeDtype dtype) {
  if (dtype == ComputeDtype::kFloat32) return value;
  return RoundedTogether({Flat(value)}, 0).view(value.sizes());
}

at::Tensor Product(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor product = at::mm(a, b);
  return product.scalar_type() == at::kBFloat16 ? Widened(product) : product;
}

std::vector<at::Tensor> LinearProducts(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                                       const std::vector<at::Tensor>& biases, ComputeDtype dtype) {
  std::vector<at::Tensor> outputs;
  if (dtype == ComputeDtype::kFloat32) {
    for (size_t i = 0; i < weights.size(); ++i) {
      outputs.push_back(biases[i].defined() ? at::linear(x, weights[i], biases[i])
                                            : at::linear(x, weights[i]));
    }
    return outputs;
  }
  outputs = Bfloat16Linears::apply(x, at::TensorList(weights));
  for (size_t i = 0; i < weights.size(); ++i) {
    if (biases[i].defined()) outputs[i] = outputs[i] + biases[i];
  }
  return outputs;
}

at::Tensor GatedSiluProducts(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& up) {
  if (HasKernels(x)) return Bfloat16GatedSilu::apply(x, gate, up);
  const auto both = LinearProducts(x, {gate, up}, {{}, {}}, ComputeDtype::kBfloat16);
  return GatedSilu(both[0], both[1]);
}

at::Tensor LinearProduct(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         ComputeDtype dtype) {
  return LinearProducts(x, {weight}, {bias}, dtype)[0];
}

}  // namespace quantry::engine
