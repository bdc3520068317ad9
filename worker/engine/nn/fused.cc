#include "worker/engine/nn/fused.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "worker/engine/base/parallel.h"
#include "worker/engine/nn/simd_kernels.h"

namespace quantry::engine {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Elements one task takes.
constexpr int64_t kGrain = int64_t{1} << 14;
int64_t RowsATask(int64_t width) { return std::max<int64_t>(1, kGrain / width); }

bool Applies(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && simd::Available();
}

class GatedSiluFunction : public torch::autograd::Function<GatedSiluFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate,
                            const at::Tensor& up) {
    at::Tensor out = at::empty_like(gate);
    const auto *g = gate.const_data_ptr<float>(), *u = up.const_data_ptr<float>();
    auto* o = out.mutable_data_ptr<float>();
    at::parallel_for(0, gate.numel(), kGrain, [&](int64_t begin, int64_t end) {
      simd::GatedSilu(g + begin, u + begin, end - begin, o + begin);
    });
    context->save_for_backward({gate, up});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& slopes) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor slope = slopes[0].contiguous();
    at::Tensor dg = at::empty_like(saved[0]), du = at::empty_like(saved[1]);
    const auto *g = saved[0].const_data_ptr<float>(), *u = saved[1].const_data_ptr<float>(),
               *s = slope.const_data_ptr<float>();
    auto *to_g = dg.mutable_data_ptr<float>(), *to_u = du.mutable_data_ptr<float>();
    at::parallel_for(0, slope.numel(), kGrain, [&](int64_t begin, int64_t end) {
      simd::GatedSiluSlope(g + begin, u + begin, s + begin, end - begin, to_g + begin,
                           to_u + begin);
    });
    return {dg, du};
  }
};

class RmsNormFunction : public torch::autograd::Function<RmsNormFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            double eps) {
    const int64_t width = x.size(-1), rows = x.numel() / width;
    at::Tensor out = at::empty_like(x);
    at::Tensor inverse = at::empty({rows}, x.options());
    const auto *from = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
    auto *to = out.mutable_data_ptr<float>(), *r = inverse.mutable_data_ptr<float>();
    ForEachIndex(rows, RowsATask(width), [&](int64_t i) {
      const float* row = from + i * width;
      const float mean = simd::Dot(row, row, width) / static_cast<float>(width);
      r[i] = 1.0F / std::sqrt(mean + static_cast<float>(eps));
      simd::MultiplyScaled(row, w, width, r[i], to + i * width);
    });
    context->save_for_backward({x, weight, inverse});
    return out;
  }

  // y = x r w, r = (mean(x^2) + eps)^(-1/2):
  //   dx = r w s - x r^3 / n * sum(x w s),   dw = sum over rows of x r s
  static variable_list backward(AutogradContext* context, const variable_list& slopes) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &inverse = saved[2];
    const at::Tensor slope = slopes[0].contiguous();
    const int64_t width = x.size(-1), rows = x.numel() / width;
    at::Tensor dx = at::empty_like(x);
    const auto *from = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>(),
               *s = slope.const_data_ptr<float>(), *r = inverse.const_data_ptr<float>();
    auto* to = dx.mutable_data_ptr<float>();
    ForEachIndex(rows, RowsATask(width), [&](int64_t i) {
      const float* row = from + i * width;
      float* out = to + i * width;
      simd::MultiplyScaled(s + i * width, w, width, r[i], out);
      const float along = simd::Dot(row, out, width);
      simd::AddScaled(row, width, -along * r[i] * r[i] / static_cast<float>(width), out);
    });
    at::Tensor dw;
    if (weight.requires_grad()) {
      dw = (x.view({rows, width}) * inverse.unsqueeze(1) * slope.view({rows, width})).sum(0);
    }
    return {dx, dw, at::Tensor()};
  }
};

// out = x * cos + rotate_half(x) * sin; `sign` -1 turns back.
void RotateRows(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, float sign,
                const at::Tensor& out) {
  const int64_t batch = x.size(0), heads = x.size(1), tokens = x.size(2), dim = x.size(3);
  const auto *c = cos.const_data_ptr<float>(), *s = sin.const_data_ptr<float>();
  const auto* from = x.const_data_ptr<float>();
  auto* to = out.mutable_data_ptr<float>();
  ForEachIndex(batch * tokens, RowsATask(heads * dim), [&](int64_t i) {
    const int64_t b = i / tokens, t = i % tokens;
    for (int64_t h = 0; h < heads; ++h) {
      simd::RotateRow(from + b * x.stride(0) + h * x.stride(1) + t * x.stride(2), c + t * dim,
                      s + t * dim, dim, sign,
                      to + b * out.stride(0) + h * out.stride(1) + t * out.stride(2));
    }
  });
}

at::Tensor TokensFirst(const at::Tensor& like) {
  return at::empty({like.size(0), like.size(2), like.size(1), like.size(3)}, like.options())
      .transpose(1, 2);
}

class RotateFunction : public torch::autograd::Function<RotateFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    at::Tensor out = TokensFirst(x);
    RotateRows(x, cos, sin, 1.0F, out);
    context->save_for_backward({cos, sin});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& slopes) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor slope = slopes[0].stride(3) == 1 ? slopes[0] : slopes[0].contiguous();
    at::Tensor dx = TokensFirst(slope);
    RotateRows(slope, saved[0], saved[1], -1.0F, dx);
    return {dx, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor GatedSilu(const at::Tensor& gate, const at::Tensor& up) {
  if (!Applies(gate)) return at::silu(gate) * up;
  return GatedSiluFunction::apply(gate.contiguous(), up.contiguous());
}

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (!Applies(x)) return x * (x.square().mean(-1, /*keepdim=*/true) + eps).rsqrt() * weight;
  return RmsNormFunction::apply(x.contiguous(), weight.contiguous(), eps);
}

at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  if (!Applies(x)) {
    const int64_t half = x.size(3) / 2;
    const at::Tensor rotated = at::cat({x.narrow(3, half, half).neg(), x.narrow(3, 0, half)}, 3);
    return x * cos + rotated * sin;
  }
  return RotateFunction::apply(x.stride(3) == 1 ? x : x.contiguous(), cos.contiguous(),
                               sin.contiguous());
}

}  // namespace quantry::engine
