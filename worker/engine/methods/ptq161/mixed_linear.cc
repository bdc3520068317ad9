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

SignProduct::Scales ScalesOf(const MixedLinear& linear) {
  return {linear.RowGain(), linear.RowOffset(), linear.column.value.contiguous()};
}

const MixedLinear& SavedLinear(AutogradContext* context) {
  return *reinterpret_cast<const MixedLinear*>(context->saved_data["linear"].toInt());
}

// SignProduct with signs as a matrix: y += A S (r2 x) + C (r2 . x). Keeps
// (r2 x) S^T [T, n] and r2 . x [T].
SignProduct::Kept AddBinary(const MixedLinear& linear, const at::Tensor& x_others, at::Tensor& y) {
  const at::Tensor scaled = x_others * linear.column.value;
  const SignProduct::Kept kept = {linear.Multiply(scaled, linear.signs.t()), scaled.sum(1)};
  y.addcmul_(kept.products, linear.RowGain()).addr_(kept.totals, linear.RowOffset());
  return kept;
}

// Its gradients with g = dL/dy: dA = sum g * product, dC = g^T total.
SignProduct::Gradients BinaryGradients(const MixedLinear& linear, const at::Tensor& g,
                                       const at::Tensor& x_others, const SignProduct::Kept& kept) {
  SignProduct::Gradients result;
  result.scales.gain = (g * kept.products).sum(0);
  result.scales.offset = at::mv(g.t(), kept.totals);
  at::Tensor scaled_grad = linear.Multiply(g * linear.RowGain(), linear.signs);
  scaled_grad.add_(at::mv(g, linear.RowOffset()).unsqueeze(1));
  result.scales.column = (scaled_grad * x_others).sum(0);
  result.x = scaled_grad.mul_(linear.column.value);
  return result;
}

struct ProductFunction : public Function<ProductFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_salient,
                            const at::Tensor& x_others, const at::Tensor& /*anchor*/,
                            const MixedLinear* linear) {
    at::Tensor y = linear->Multiply(x_salient, linear->fixed.t());
    if (linear->bias.defined()) y.add_(linear->bias);
    const SignProduct::Kept kept = linear->lookup != nullptr
                                       ? linear->lookup->AddTo(y, x_others, ScalesOf(*linear))
                                       : AddBinary(*linear, x_others, y);
    context->save_for_backward({x_others, kept.products, kept.totals});
    context->saved_data["linear"] = reinterpret_cast<int64_t>(linear);
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const MixedLinear& linear = SavedLinear(context);
    const variable_list saved = context->get_saved_variables();
    const at::Tensor g = grads[0].contiguous();
    const SignProduct::Kept kept = {saved[1], saved[2]};
    const SignProduct::Gradients binary =
        linear.lookup != nullptr ? linear.lookup->Backward(g, saved[0], ScalesOf(linear), kept,
                                                           context->needs_input_grad(1))
                                 : BinaryGradients(linear, g, saved[0], kept);
    linear.TakeGradients(binary.scales);
    at::Tensor salient_grad;
    if (context->needs_input_grad(0)) salient_grad = linear.Multiply(g, linear.fixed);
    return {salient_grad, context->needs_input_grad(1) ? binary.x : at::Tensor(), at::Tensor(),
            at::Tensor()};
  }
};

struct SplitFunction : public Function<SplitFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const MixedLinear* linear) {
    context->saved_data["linear"] = reinterpret_cast<int64_t>(linear);
    return {x.index_select(1, linear->salient), x.index_select(1, linear->others)};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const at::Tensor& places = SavedLinear(context).places;
    return {at::cat({grads[0], grads[1]}, 1).index_select(1, places), at::Tensor()};
  }
};

MixedLinear MakeMixedLinear(const Linear& from, const Ptq161Options& options,
                            const at::Tensor& salient) {
  const at::Device device = from.weight.device();
  MixedLinear linear;
  linear.name = from.name;
  linear.bias = from.bias;
  linear.compute = options.compute;
  linear.SetSalient(salient.to(at::kLong), from.weight.size(1), device);
  const at::Tensor columns = from.weight.index_select(1, linear.salient);
  linear.grid = FitSalientGrid(options.salient_grid ? columns : from.weight);
  linear.codes = SalientCodes(columns, linear.grid);
  linear.fixed = linear.codes.to(at::kFloat)
                     .sub_(linear.grid.zeros.unsqueeze(-1))
                     .mul_(linear.grid.scales.unsqueeze(-1));
  const BinaryRows rows =
      BinarizeRows(from.weight.index_select(1, linear.others), options.centered_gain);
  linear.mean = rows.mean;
  linear.SetSigns(rows.signs);
  // A row of one level has no gain, and gets none.
  linear.gain_unit = options.relative_gain ? rows.gain : rows.gain.ne(0.0).to(at::kFloat);
  linear.gain.value = options.relative_gain ? at::ones_like(rows.gain) : rows.gain;
  return linear;
}

}  // namespace

at::Tensor MixedLinear::Multiply(const at::Tensor& a, const at::Tensor& b) const {
  return Product(Factor(a, compute), Factor(b, compute));
}

void MixedLinear::SetSalient(const at::Tensor& columns, int64_t all, const at::Device& device) {
  const at::Tensor rest = ColumnsWithout(columns, all);
  salient = columns.to(device);
  others = rest.to(device);
  places = at::cat({columns, rest}).argsort().to(device);
}

void MixedLinear::SetSigns(const at::Tensor& uint8_signs) {
  signs8 = uint8_signs;
  const bool looked_up = SignProduct::Available() && signs8.is_cpu() && signs8.numel() > 0 &&
                         mean.scalar_type() == at::kFloat && compute == ComputeDtype::kFloat32;
  lookup = looked_up ? std::make_shared<SignProduct>(signs8) : nullptr;
  signs = looked_up ? at::Tensor() : signs8.to(mean.scalar_type()).mul_(2.0).sub_(1.0);
}

void MixedLinear::TakeGradients(const SignProduct::Scales& slopes) const {
  const at::Tensor alpha = gain_unit * gain.value;
  Parameter parameter = gain;
  parameter.grad.copy_(slopes.gain * row.value * gain_unit);
  parameter = row;
  parameter.grad.copy_(slopes.gain * alpha + slopes.offset * mean);
  parameter = column;
  parameter.grad.copy_(slopes.column);
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

int64_t MixedLinear::Clipped() const {
  const auto beyond = [](const at::Tensor& value) {
    return value.abs().gt(kMostHalf).sum().item<int64_t>();
  };
  const int64_t gains = beyond(RowGain()) + beyond(RowOffset()) + beyond(column.value);
  if (salient.numel() == 0) return gains;                          // there is nothing to scale
  return gains + grid.scales.ge(kMostHalf).sum().item<int64_t>();  // clipped where they were fitted
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
  const variable_list parts = SplitFunction::apply(x.reshape({-1, x.size(-1)}), &linear);
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
