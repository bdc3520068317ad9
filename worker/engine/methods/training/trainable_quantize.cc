#include "worker/engine/methods/training/trainable_quantize.h"

#include <torch/csrc/autograd/custom_function.h>

#include <optional>

namespace quantry::engine {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// [out, in] -> [out, groups, g]
at::Tensor Grouped(const at::Tensor& x, const at::Tensor& scales) {
  return x.reshape({x.size(0), scales.size(1), x.size(1) / scales.size(1)});
}

class Quantize : public torch::autograd::Function<Quantize> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weight,
                            const at::Tensor& scales, const at::Tensor& zeros,
                            const std::optional<at::Tensor>& given, int64_t qmax) {
    const at::Tensor offsets = given.value_or(at::Tensor());
    context->save_for_backward({weight, scales, zeros, offsets});
    context->saved_data["qmax"] = qmax;
    const at::Tensor s = scales.unsqueeze(-1), z = zeros.unsqueeze(-1);
    at::Tensor codes = Grouped(weight, scales).div(s);
    if (offsets.defined()) codes.add_(Grouped(offsets, scales));
    codes.round_().add_(z).clamp_(0.0, static_cast<double>(qmax));
    return codes.sub_(z).mul_(s).reshape(weight.sizes());
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &weight = saved[0], &scales = saved[1], &offsets = saved[3];
    const auto qmax = static_cast<double>(context->saved_data["qmax"].toInt());
    const at::Tensor z = saved[2].unsqueeze(-1);
    const at::Tensor gradient = Grouped(gradients[0], scales);
    const at::Tensor ratio = Grouped(weight, scales).div(scales.unsqueeze(-1));
    at::Tensor codes = offsets.defined() ? ratio.add(Grouped(offsets, scales)) : ratio.clone();
    codes.round_().add_(z);
    const at::Tensor inside = codes.ge(0.0).logical_and_(codes.le(qmax));
    const at::Tensor passed = gradient * inside;
    // round(..) - w / s inside, clamp(..) - z outside.
    const at::Tensor slope = codes.clamp_(0.0, qmax).sub_(z).sub_(ratio.mul_(inside));
    variable_list result(5);
    if (context->needs_input_grad(0)) result[0] = passed.reshape(weight.sizes());
    result[1] = slope.mul_(gradient).sum(-1);
    if (offsets.defined()) {
      result[3] = passed.mul(scales.unsqueeze(-1)).reshape(weight.sizes());
    }
    return result;
  }
};

// The value of `rounded`, to the bit, and the gradient of x.
class Straight : public torch::autograd::Function<Straight> {
 public:
  static at::Tensor forward(AutogradContext*, const at::Tensor& /*x*/, const at::Tensor& rounded) {
    return rounded.clone();
  }
  static variable_list backward(AutogradContext*, const variable_list& gradients) {
    return {gradients[0], at::Tensor()};
  }
};

}  // namespace

at::Tensor TrainableQuantize(const at::Tensor& weight, const at::Tensor& scales,
                             const at::Tensor& zeros, const at::Tensor& offsets, int64_t qmax) {
  // An undefined tensor is no argument that autograd takes.
  const auto given = offsets.defined() ? std::optional<at::Tensor>(offsets) : std::nullopt;
  return Quantize::apply(weight, scales, zeros, given, qmax);
}

GroupRange RangeOfGroups(const at::Tensor& weight, const GridSpec& spec) {
  const int64_t group = spec.GroupSizeFor(weight.size(1));
  const at::Tensor grouped = weight.reshape({weight.size(0), weight.size(1) / group, group});
  return {grouped.amin(-1).clamp_max(0.0), grouped.amax(-1).clamp_min(0.0)};
}

GroupGrid TrainableGrid(const GroupRange& range, const GridSpec& spec, at::ScalarType scale_dtype) {
  at::Tensor exact = ScalesOf(range.lo, range.hi, spec);
  GroupGrid grid = GridOfRange(range.lo.detach(), range.hi.detach(), spec, scale_dtype);
  if (!exact.requires_grad()) return grid;
  if (spec.zero_at_least_one) {
    const at::Tensor plain = grid.scales.eq(RoundScales(exact.detach(), scale_dtype));
    exact = at::where(plain, exact, ScalesOfRaisedZero(range.hi, spec));
  }
  grid.scales = Straight::apply(exact, grid.scales);
  return grid;
}

}  // namespace quantry::engine
