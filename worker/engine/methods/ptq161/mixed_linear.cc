#include "worker/engine/methods/ptq161/mixed_linear.h"

#include <torch/csrc/autograd/custom_function.h>

#include <map>
#include <memory>

#include "worker/engine/model/shared_inputs.h"

namespace quantry::engine {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// fp16 holds no more.
constexpr double kMostHalf = 65504.0;

at::Tensor RoundToHalf(const at::Tensor& value) {
  return value.clamp(-kMostHalf, kMostHalf).to(at::kHalf).to(at::kFloat).cpu().contiguous();
}

// Keeps the graph alive where x needs no gradient; gets none itself.
at::Tensor Anchor(const at::Tensor& like) { return at::zeros({}, like.options()).requires_grad_(); }

struct ProductFunction : public Function<ProductFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_salient,
                            const at::Tensor& x_others, const at::Tensor& /*anchor*/,
                            const MixedLinear* linear) {
    const at::Tensor scaled = x_others * linear->column.value;
    const at::Tensor product = linear->Multiply(scaled, linear->signs.t());
    const at::Tensor total = scaled.sum(1);
    at::Tensor y = linear->Multiply(x_salient, linear->fixed.t());
    if (linear->bias.defined()) y.add_(linear->bias);
    y.addcmul_(product, linear->RowGain()).addr_(total, linear->RowOffset());
    context->save_for_backward({x_others, product, total});
    context->saved_data["linear"] = reinterpret_cast<int64_t>(linear);
    return y;
  }

  // With g = dL/dy: dA = sum g * product, dC = g^T total; the chain to alpha,
  // r1 and r2 is that of spec 3.3.
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto* linear =
        reinterpret_cast<const MixedLinear*>(context->saved_data["linear"].toInt());
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& x_others = saved[0];
    const at::Tensor g = grads[0].contiguous();
    const at::Tensor gain = linear->RowGain();
    const at::Tensor gain_grad = (g * saved[1]).sum(0);
    const at::Tensor offset_grad = at::mv(g.t(), saved[2]);
    const at::Tensor alpha = linear->gain_unit * linear->gain.value;
    Parameter parameter = linear->gain;
    parameter.grad.copy_(gain_grad * linear->row.value * linear->gain_unit);
    parameter = linear->row;
    parameter.grad.copy_(gain_grad * alpha + offset_grad * linear->mean);
    at::Tensor scaled_grad = linear->Multiply(g * gain, linear->signs);
    scaled_grad.add_(at::mv(g, linear->RowOffset()).unsqueeze(1));
    parameter = linear->column;
    parameter.grad.copy_((scaled_grad * x_others).sum(0));
    at::Tensor salient_grad, others_grad;
    if (context->needs_input_grad(0)) salient_grad = linear->Multiply(g, linear->fixed);
    if (context->needs_input_grad(1)) others_grad = scaled_grad.mul_(linear->column.value);
    return {salient_grad, others_grad, at::Tensor(), at::Tensor()};
  }
};

struct SplitFunction : public Function<SplitFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const at::Tensor& salient, const at::Tensor& others) {
    context->save_for_backward({salient, others});
    return {x.index_select(1, salient), x.index_select(1, others)};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor inverse = at::cat({saved[0], saved[1]}).argsort();
    return {at::cat({grads[0], grads[1]}, 1).index_select(1, inverse), at::Tensor(), at::Tensor()};
  }
};

MixedLinear MakeMixedLinear(const Linear& from, const Ptq161Options& options,
                            const at::Tensor& salient) {
  const at::Device device = from.weight.device();
  MixedLinear linear;
  linear.name = from.name;
  linear.bias = from.bias;
  linear.compute = options.compute;
  at::Tensor kept = at::ones({from.weight.size(1)}, at::kBool);
  kept.index_fill_(0, salient.to(at::kLong), false);
  linear.salient = salient.to(at::kLong).to(device);
  linear.others = kept.nonzero().squeeze(-1).to(device);
  const at::Tensor columns = from.weight.index_select(1, linear.salient);
  linear.grid = FitSalientGrid(options.salient_grid ? columns : from.weight);
  linear.codes = SalientCodes(columns, linear.grid);
  linear.fixed = linear.codes.to(at::kFloat)
                     .sub_(linear.grid.zeros.unsqueeze(-1))
                     .mul_(linear.grid.scales.unsqueeze(-1));
  const BinaryRows rows =
      BinarizeRows(from.weight.index_select(1, linear.others), options.centered_gain);
  linear.signs8 = rows.signs;
  linear.signs = rows.signs.to(at::kFloat).mul_(2.0).sub_(1.0);
  linear.mean = rows.mean;
  // A row of one level has no gain, and gets none.
  linear.gain_unit = options.relative_gain ? rows.gain : rows.gain.ne(0.0).to(at::kFloat);
  linear.gain.value = options.relative_gain ? at::ones_like(rows.gain) : rows.gain;
  return linear;
}

}  // namespace

at::Tensor MixedLinear::Multiply(const at::Tensor& a, const at::Tensor& b) const {
  return Product(Factor(a, compute), Factor(b, compute));
}

QuantizedLinear MixedLinear::Finish() const {
  QuantizedLinear result;
  result.name = name;
  if (bias.defined()) result.bias = bias.cpu();
  MixedBinaryWeight& weight = result.mixed.emplace();
  weight.columns = salient.size(0) + others.size(0);
  weight.salient = salient.to(at::kInt).cpu();
  weight.codes = codes.cpu();
  weight.scales = grid.scales.cpu();
  weight.zeros = grid.zeros.to(at::kByte).cpu();
  weight.signs = signs8.cpu();
  weight.row_gain = RoundToHalf(RowGain());
  weight.row_offset = RoundToHalf(RowOffset());
  weight.column_gain = RoundToHalf(column.value);
  return result;
}

std::vector<MixedLinear> MakeMixedLinears(const Block& block, const Ptq161Options& options,
                                          const std::vector<at::Tensor>& salient,
                                          ParameterBuffer& buffer) {
  std::vector<MixedLinear> linears;
  for (size_t i = 0; i < block.linears.size(); ++i) {
    linears.push_back(MakeMixedLinear(block.linears[i], options, salient.at(i)));
  }
  for (MixedLinear& linear : linears) {
    linear.gain = buffer.Add(linear.gain.value, options.gain_rate);
  }
  for (MixedLinear& linear : linears) {
    const auto ones = [&](int64_t count) { return at::ones({count}, linear.mean.options()); };
    linear.row = buffer.Add(ones(linear.mean.size(0)), options.rank_one_rate);
    linear.column = buffer.Add(ones(linear.others.size(0)), options.rank_one_rate);
  }
  return linears;
}

at::Tensor MixedProduct(const MixedLinear& linear, const at::Tensor& x_salient,
                        const at::Tensor& x_others) {
  return ProductFunction::apply(x_salient, x_others, Anchor(x_others), &linear);
}

std::pair<at::Tensor, at::Tensor> SplitColumns(const at::Tensor& x, const MixedLinear& linear) {
  const variable_list parts =
      SplitFunction::apply(x.reshape({-1, x.size(-1)}), linear.salient, linear.others);
  return {parts[0], parts[1]};
}

LinearForward MixedForward(const Block& block, const std::vector<MixedLinear>& linears) {
  struct Shared {
    std::map<int, std::pair<at::Tensor, at::Tensor>> parts;  // by source
  };
  return [&block, &linears, shared = std::make_shared<Shared>()](int index, const at::Tensor& x) {
    const int source = InputSource(*block.architecture, index);
    const MixedLinear& linear = linears.at(index);
    auto found = shared->parts.find(source);
    if (found == shared->parts.end()) {
      found = shared->parts.emplace(source, SplitColumns(x, linear)).first;
    }
    at::Tensor y = MixedProduct(linear, found->second.first, found->second.second);
    std::vector<int64_t> shape = x.sizes().vec();
    shape.back() = y.size(1);
    return y.view(shape);
  };
}

}  // namespace quantry::engine
