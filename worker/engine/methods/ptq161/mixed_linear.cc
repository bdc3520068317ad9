#include "worker/engine/methods/ptq161/mixed_linear.h"

#include <torch/csrc/autograd/custom_function.h>

#include <map>
#include <memory>

#include "worker/engine/base/parallel.h"
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
SignProduct::Kept AddBinary(const MixedLinear& linear, const at::Tensor& x_others,
                            const SignProduct::Scales& scales, at::Tensor& y) {
  const at::Tensor scaled = x_others * scales.column;
  const SignProduct::Kept kept = {linear.Multiply(scaled, linear.signs.t()), scaled.sum(1)};
  y.addcmul_(kept.products, scales.gain).addr_(kept.totals, scales.offset);
  return kept;
}

// Its gradients with g = dL/dy: dA = sum g * product, dC = g^T total.
SignProduct::Gradients BinaryGradients(const MixedLinear& linear, const at::Tensor& g,
                                       const at::Tensor& x_others,
                                       const SignProduct::Scales& scales,
                                       const SignProduct::Kept& kept) {
  SignProduct::Gradients result;
  result.scales.gain = (g * kept.products).sum(0);
  result.scales.offset = at::mv(g.t(), kept.totals);
  at::Tensor scaled_grad = linear.Multiply(g * scales.gain, linear.signs);
  scaled_grad.add_(at::mv(g, scales.offset).unsqueeze(1));
  result.scales.column = (scaled_grad * x_others).sum(0);
  result.x = scaled_grad.mul_(scales.column);
  return result;
}

struct ProductFunction : public Function<ProductFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_salient,
                            const at::Tensor& x_others, const at::Tensor& /*anchor*/,
                            const MixedLinear* linear) {
    at::Tensor y = linear->Multiply(x_salient, linear->fixed.t());
    if (linear->bias.defined()) y.add_(linear->bias);
    const SignProduct::Scales scales = ScalesOf(*linear);
    const SignProduct::Kept kept = linear->lookup != nullptr
                                       ? linear->lookup->AddTo(y, x_others, scales)
                                       : AddBinary(*linear, x_others, scales, y);
    context->save_for_backward({x_others, kept.products, kept.totals, scales.gain, scales.offset});
    context->saved_data["linear"] = reinterpret_cast<int64_t>(linear);
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const MixedLinear& linear = SavedLinear(context);
    const variable_list saved = context->get_saved_variables();
    const at::Tensor g = grads[0].contiguous();
    const SignProduct::Kept kept = {saved[1], saved[2]};
    const SignProduct::Scales scales = {saved[3], saved[4], linear.column.value};
    const SignProduct::Gradients binary =
        linear.lookup != nullptr
            ? linear.lookup->Backward(g, saved[0], scales, kept, context->needs_input_grad(1))
            : BinaryGradients(linear, g, saved[0], scales, kept);
    linear.TakeGradients(binary.scales);
    at::Tensor salient_grad;
    if (context->needs_input_grad(0)) {
      const int64_t count = linear.salient.size(0);
      salient_grad = linear.Multiply(g, linear.padded_fixed).slice(1, 0, count);
    }
    return {salient_grad, context->needs_input_grad(1) ? binary.x : at::Tensor(), at::Tensor(),
            at::Tensor()};
  }
};

// Whether columns are moved by plain loops, which for few columns outrun index_select.
bool MovesHere(const at::Tensor& x) { return x.is_cpu() && x.scalar_type() == at::kFloat; }

constexpr int64_t kRowsMovedAtOnce = 64;  // by one task

// Where the columns of one part stand in x.
struct Columns {
  explicit Columns(const at::Tensor& from)
      : at(from.const_data_ptr<int64_t>()), count(from.size(0)) {}
  void Gather(const float* x, float* part) const {
    for (int64_t j = 0; j < count; ++j) part[j] = x[at[j]];
  }
  void Scatter(const float* part, float* x) const {
    for (int64_t j = 0; j < count; ++j) x[at[j]] = part[j];
  }

  const int64_t* at;
  int64_t count;
};

variable_list Split(const at::Tensor& x, const MixedLinear& linear) {
  if (!MovesHere(x)) return {x.index_select(1, linear.salient), x.index_select(1, linear.others)};
  const Columns salient(linear.salient), others(linear.others);
  const int64_t rows = x.size(0), width = x.size(1);
  variable_list parts = {at::empty({rows, salient.count}, x.options()),
                         at::empty({rows, others.count}, x.options())};
  const at::Tensor whole = x.contiguous();
  const auto* from = whole.const_data_ptr<float>();
  auto *first = parts[0].mutable_data_ptr<float>(), *second = parts[1].mutable_data_ptr<float>();
  ForEachIndex(rows, kRowsMovedAtOnce, [&](int64_t i) {
    salient.Gather(from + i * width, first + i * salient.count);
    others.Gather(from + i * width, second + i * others.count);
  });
  return parts;
}

at::Tensor Rejoin(const variable_list& parts, const MixedLinear& linear) {
  const auto with_rows = [](const at::Tensor& x) { return x.stride(1) == 1 ? x : x.contiguous(); };
  const at::Tensor some = with_rows(parts[0]), rest = with_rows(parts[1]);
  const int64_t rows = some.size(0), width = some.size(1) + rest.size(1);
  at::Tensor whole = at::empty({rows, width}, some.options());
  if (!MovesHere(some)) {
    return whole.index_copy_(1, linear.salient, some).index_copy_(1, linear.others, rest);
  }
  const Columns salient(linear.salient), others(linear.others);
  const auto *first = some.const_data_ptr<float>(), *second = rest.const_data_ptr<float>();
  auto* to = whole.mutable_data_ptr<float>();
  ForEachIndex(rows, kRowsMovedAtOnce, [&](int64_t i) {
    salient.Scatter(first + i * some.stride(0), to + i * width);
    others.Scatter(second + i * rest.stride(0), to + i * width);
  });
  return whole;
}

struct SplitFunction : public Function<SplitFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const MixedLinear* linear) {
    context->saved_data["linear"] = reinterpret_cast<int64_t>(linear);
    return Split(x, *linear);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    return {Rejoin(grads, SavedLinear(context)), at::Tensor()};
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
  linear.SetFixed(linear.codes.to(at::kFloat)
                      .sub_(linear.grid.zeros.unsqueeze(-1))
                      .mul_(linear.grid.scales.unsqueeze(-1)));
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
  salient = columns.to(device);
  others = ColumnsWithout(columns, all).to(device);
}

void MixedLinear::SetFixed(const at::Tensor& weight) {
  constexpr int64_t kVector = 8;
  const int64_t count = weight.size(1), whole = (count + kVector - 1) / kVector * kVector;
  padded_fixed = at::constant_pad_nd(weight, {0, whole - count});
  fixed = padded_fixed.slice(1, 0, count);
}

void MixedLinear::SetSigns(const at::Tensor& uint8_signs) {
  signs8 = uint8_signs;
  const bool looked_up = SignProduct::Available() && signs8.is_cpu() && signs8.numel() > 0 &&
                         mean.scalar_type() == at::kFloat;
  const SignSums sums = compute == ComputeDtype::kBfloat16 ? SignSums::kFixed : SignSums::kFloat;
  lookup = looked_up ? std::make_shared<SignProduct>(signs8, sums) : nullptr;
  signs = looked_up ? at::Tensor() : signs8.to(mean.scalar_type()).mul_(2.0).sub_(1.0);
}

void MixedLinear::TakeGradients(const SignProduct::Scales& slopes) const {
  const at::Tensor gained = slopes.gain * gain_unit;
  Parameter parameter = gain;
  at::mul_out(parameter.grad, gained, row.value);
  parameter = row;
  at::mul_out(parameter.grad, gained, gain.value).addcmul_(slopes.offset, mean);
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
