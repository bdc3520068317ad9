#include "worker/engine/nn/attention.h"

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

// Queries of one tile: its scores, 32 x 512 floats, stay in the second cache.
constexpr int64_t kTileRows = 32;

struct Shape {
  Shape(const at::Tensor& q, const at::Tensor& k)
      : batch(q.size(0)),
        heads(q.size(1)),
        kv_heads(k.size(1)),
        tokens(q.size(2)),
        dim(q.size(3)),
        scale(static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)))) {}
  int64_t share() const { return heads / kv_heads; }

  int64_t batch, heads, kv_heads, tokens, dim;
  float scale;
};

// One head's rows [tokens, dim] inside a tensor of four dimensions.
struct Rows {
  Rows(const at::Tensor& x, int64_t batch, int64_t head)
      : data(const_cast<float*>(x.const_data_ptr<float>()) + batch * x.stride(0) +
             head * x.stride(1)),
        stride(x.stride(2)) {}
  float* at(int64_t token) const { return data + token * stride; }

  float* data;
  int64_t stride;
};

// [dim, tokens] of one head, so that scores of many keys are one vector.
std::vector<float> Transposed(const Rows& rows, const Shape& shape) {
  std::vector<float> result(shape.dim * shape.tokens);
  simd::Transpose(rows.data, rows.stride, shape.tokens, shape.dim, result.data());
  return result;
}

// Queries [first, first + count) see keys up to themselves; the tile holds
// first + count keys a row.
struct Tile {
  int64_t first, count;
  int64_t keys() const { return first + count; }
  int64_t seen(int64_t row) const { return first + row + 1; }
};

template <typename Work>
void ForEachTile(int64_t tokens, const Work& work) {
  for (int64_t first = 0; first < tokens; first += kTileRows) {
    work(Tile{first, std::min(kTileRows, tokens - first)});
  }
}

void Products(const Tile& tile, const Shape& shape, const Rows& rows, const float* transposed,
              std::vector<float>& out) {
  simd::MultiplyAdd(tile.count, tile.keys(), shape.dim, {rows.at(tile.first), rows.stride, 1},
                    transposed, shape.tokens, out.data(), tile.keys(), false);
}

void ForwardHead(const Shape& shape, const Rows& q, const float* keys, const Rows& v,
                 const Rows& out, float* logsum) {
  std::vector<float> scores(kTileRows * shape.tokens);
  ForEachTile(shape.tokens, [&](const Tile& tile) {
    Products(tile, shape, q, keys, scores);
    for (int64_t i = 0; i < tile.count; ++i) {
      float* row = scores.data() + i * tile.keys();
      float largest = 0;
      const float sum = simd::ExpRow(row, tile.seen(i), shape.scale, &largest);
      simd::Scale(row, tile.seen(i), 1.0F / sum);
      std::fill(row + tile.seen(i), row + tile.keys(), 0.0F);
      logsum[tile.first + i] = largest + std::log(sum) / shape.scale;
    }
    simd::MultiplyAdd(tile.count, shape.dim, tile.keys(), {scores.data(), tile.keys(), 1}, v.data,
                      v.stride, out.at(tile.first), out.stride, false);
  });
}

struct HeadSlopes {
  Rows q, k, v;  // where the gradients go; k and v are added to
};

void BackwardHead(const Shape& shape, const Rows& q, const Rows& k, const float* keys,
                  const float* values, const Rows& out, const Rows& slope, const float* logsum,
                  const HeadSlopes& to) {
  std::vector<float> probabilities(kTileRows * shape.tokens);
  std::vector<float> slopes(kTileRows * shape.tokens);
  ForEachTile(shape.tokens, [&](const Tile& tile) {
    Products(tile, shape, q, keys, probabilities);
    Products(tile, shape, slope, values, slopes);
    for (int64_t i = 0; i < tile.count; ++i) {
      const int64_t token = tile.first + i;
      float* p = probabilities.data() + i * tile.keys();
      float* s = slopes.data() + i * tile.keys();
      simd::ExpShifted(p, tile.seen(i), shape.scale, logsum[token]);
      const float mean = simd::Dot(slope.at(token), out.at(token), shape.dim);
      simd::SoftmaxSlope(p, s, tile.seen(i), mean, shape.scale);
      std::fill(p + tile.seen(i), p + tile.keys(), 0.0F);
      std::fill(s + tile.seen(i), s + tile.keys(), 0.0F);
    }
    simd::MultiplyAdd(tile.count, shape.dim, tile.keys(), {slopes.data(), tile.keys(), 1}, k.data,
                      k.stride, to.q.at(tile.first), to.q.stride, false);
    simd::MultiplyAdd(tile.keys(), shape.dim, tile.count, {slopes.data(), 1, tile.keys()},
                      q.at(tile.first), q.stride, to.k.data, to.k.stride, true);
    simd::MultiplyAdd(tile.keys(), shape.dim, tile.count, {probabilities.data(), 1, tile.keys()},
                      slope.at(tile.first), slope.stride, to.v.data, to.v.stride, true);
  });
}

// [batch, heads, tokens, dim] as a view of [batch, tokens, heads, dim].
at::Tensor HeadsInside(const at::Tensor& like, bool zero) {
  const std::vector<int64_t> sizes = {like.size(0), like.size(2), like.size(1), like.size(3)};
  return (zero ? at::zeros(sizes, like.options()) : at::empty(sizes, like.options()))
      .transpose(1, 2);
}

at::Tensor UnitStride(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

template <typename Work>
void ForEachKvHead(const Shape& shape, const Work& work) {
  ForEachIndex(shape.batch * shape.kv_heads, 1,
               [&](int64_t i) { work(i / shape.kv_heads, i % shape.kv_heads); });
}

// Output and the log of each query's sum of exponentials [batch, heads, tokens].
std::pair<at::Tensor, at::Tensor> Forward(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& v) {
  const Shape shape(q, k);
  const at::Tensor out = HeadsInside(q, false);
  const at::Tensor logsum = at::empty({shape.batch, shape.heads, shape.tokens}, q.options());
  ForEachKvHead(shape, [&](int64_t batch, int64_t kv) {
    const std::vector<float> keys = Transposed(Rows(k, batch, kv), shape);
    for (int64_t head = kv * shape.share(); head < (kv + 1) * shape.share(); ++head) {
      ForwardHead(shape, Rows(q, batch, head), keys.data(), Rows(v, batch, kv),
                  Rows(out, batch, head),
                  logsum.mutable_data_ptr<float>() + (batch * shape.heads + head) * shape.tokens);
    }
  });
  return {out, logsum};
}

variable_list Backward(const variable_list& saved, const at::Tensor& slope) {
  const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &logsum = saved[4];
  const Shape shape(q, k);
  const at::Tensor dq = HeadsInside(q, false), dk = HeadsInside(k, true), dv = HeadsInside(v, true);
  ForEachKvHead(shape, [&](int64_t batch, int64_t kv) {
    const std::vector<float> keys = Transposed(Rows(k, batch, kv), shape);
    const std::vector<float> values = Transposed(Rows(v, batch, kv), shape);
    for (int64_t head = kv * shape.share(); head < (kv + 1) * shape.share(); ++head) {
      BackwardHead(shape, Rows(q, batch, head), Rows(k, batch, kv), keys.data(), values.data(),
                   Rows(out, batch, head), Rows(slope, batch, head),
                   logsum.const_data_ptr<float>() + (batch * shape.heads + head) * shape.tokens,
                   {Rows(dq, batch, head), Rows(dk, batch, kv), Rows(dv, batch, kv)});
    }
  });
  return {dq, dk, dv};
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v) {
    const auto [out, logsum] = Forward(q, k, v);
    context->save_for_backward({q, k, v, out, logsum});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& slopes) {
    return Backward(context->get_saved_variables(), UnitStride(slopes[0]));
  }
};

}  // namespace

bool FusedAttentionApplies(const at::Tensor& q, const at::Tensor& k) {
  return q.is_cpu() && q.scalar_type() == at::kFloat && q.size(2) == k.size(2) && simd::Available();
}

at::Tensor FusedCausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  return Attention::apply(UnitStride(q), UnitStride(k), UnitStride(v));
}

}  // namespace quantry::engine
