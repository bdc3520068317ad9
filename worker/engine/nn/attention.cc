#include "worker/engine/nn/attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "worker/engine/base/parallel.h"
#include "worker/engine/nn/bfloat16_kernels.h"
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

// How a head's rows take part in products: as the rows that a tile is of (kTiled), as
// those that each row of a tile meets (kMet), as what a tile weighs (kWeighed).
enum Part : unsigned { kTiled = 1, kMet = 2, kWeighed = 4 };

// Products in fp32.
class Fp32 {
 public:
  class Operand {
   public:
    Operand(const Rows& rows, const Shape& shape, unsigned parts) : rows(rows) {
      if ((parts & kMet) == 0) return;
      turned.resize(shape.dim * shape.tokens);
      simd::Transpose(rows.data, rows.stride, shape.tokens, shape.dim, turned.data());
    }

    Rows rows;
    std::vector<float> turned;  // [dim, tokens], so that scores of many keys are one vector
  };

  // out [count, keys] = a b^T of a tile of a.
  void Scores(const Tile& tile, const Shape& shape, const Operand& a, const Operand& b,
              std::vector<float>& out) {
    simd::MultiplyAdd(tile.count, tile.keys(), shape.dim, {a.rows.at(tile.first), a.rows.stride, 1},
                      b.turned.data(), shape.tokens, out.data(), tile.keys(), false);
  }
  // The tile's rows of `to` = weights b.
  void Weigh(const Tile& tile, const Shape& shape, const std::vector<float>& weights,
             const Operand& b, const Rows& to) {
    simd::MultiplyAdd(tile.count, shape.dim, tile.keys(), {weights.data(), tile.keys(), 1},
                      b.rows.data, b.rows.stride, to.at(tile.first), to.stride, false);
  }
  // to += weights^T a of a tile of a.
  void AddTurned(const Tile& tile, const Shape& shape, const std::vector<float>& weights,
                 const Operand& a, const Rows& to) {
    simd::MultiplyAdd(tile.keys(), shape.dim, tile.count, {weights.data(), 1, tile.keys()},
                      a.rows.at(tile.first), a.rows.stride, to.data, to.stride, true);
  }
};

// The same with factors rounded to bfloat16.
class Bfloat16 {
 public:
  class Operand {
   public:
    Operand(const Rows& rows, const Shape& shape, unsigned parts) {
      const int64_t pairs = simd::PairsOf(shape.dim);
      if ((parts & (kTiled | kMet)) != 0) {
        by_dim.resize(shape.tokens * pairs);
        simd::PairColumns(rows.data, rows.stride, shape.tokens, shape.dim, by_dim.data());
      }
      if ((parts & kMet) != 0) {
        turned.resize(by_dim.size());
        simd::Transpose(reinterpret_cast<const float*>(by_dim.data()), pairs, shape.tokens, pairs,
                        reinterpret_cast<float*>(turned.data()));
      }
      if ((parts & kWeighed) != 0) {
        by_token.resize(simd::PairsOf(shape.tokens) * shape.dim);
        simd::PairRows(rows.data, rows.stride, shape.tokens, shape.dim, by_token.data());
      }
    }

    std::vector<simd::Pair> by_dim;    // [tokens, pairs]
    std::vector<simd::Pair> turned;    // [pairs, tokens]
    std::vector<simd::Pair> by_token;  // [pairs of tokens, dim]
  };

  void Scores(const Tile& tile, const Shape& shape, const Operand& a, const Operand& b,
              std::vector<float>& out) {
    const int64_t pairs = simd::PairsOf(shape.dim);
    simd::MultiplyAddPairs(tile.count, tile.keys(), pairs,
                           {a.by_dim.data() + tile.first * pairs, pairs, 1}, b.turned.data(),
                           shape.tokens, out.data(), tile.keys(), false);
  }
  void Weigh(const Tile& tile, const Shape& shape, const std::vector<float>& weights,
             const Operand& b, const Rows& to) {
    const int64_t pairs = simd::PairsOf(tile.keys());
    paired_.resize(kTileRows * pairs);
    simd::PairColumns(weights.data(), tile.keys(), tile.count, tile.keys(), paired_.data());
    simd::MultiplyAddPairs(tile.count, shape.dim, pairs, {paired_.data(), pairs, 1},
                           b.by_token.data(), shape.dim, to.at(tile.first), to.stride, false);
  }
  void AddTurned(const Tile& tile, const Shape& shape, const std::vector<float>& weights,
                 const Operand& a, const Rows& to) {
    static_assert(kTileRows % 2 == 0, "a tile begins with a pair");
    paired_.resize(kTileRows * tile.keys());
    simd::PairRows(weights.data(), tile.keys(), tile.count, tile.keys(), paired_.data());
    simd::MultiplyAddPairs(
        tile.keys(), shape.dim, simd::PairsOf(tile.count), {paired_.data(), 1, tile.keys()},
        a.by_token.data() + tile.first / 2 * shape.dim, shape.dim, to.data, to.stride, true);
  }

 private:
  std::vector<simd::Pair> paired_;  // a tile's weights
};

template <typename Math>
void ForwardHead(const Shape& shape, const Rows& q, const typename Math::Operand& keys,
                 const typename Math::Operand& values, const Rows& out, float* logsum) {
  Math math;
  const typename Math::Operand queries(q, shape, kTiled);
  std::vector<float> scores(kTileRows * shape.tokens);
  ForEachTile(shape.tokens, [&](const Tile& tile) {
    math.Scores(tile, shape, queries, keys, scores);
    for (int64_t i = 0; i < tile.count; ++i) {
      float* row = scores.data() + i * tile.keys();
      float largest = 0;
      const float sum = simd::ExpRow(row, tile.seen(i), shape.scale, &largest);
      simd::Scale(row, tile.seen(i), 1.0F / sum);
      std::fill(row + tile.seen(i), row + tile.keys(), 0.0F);
      logsum[tile.first + i] = largest + std::log(sum) / shape.scale;
    }
    math.Weigh(tile, shape, scores, values, out);
  });
}

struct HeadSlopes {
  Rows q, k, v;  // where the gradients go; k and v are added to
};

template <typename Math>
void BackwardHead(const Shape& shape, const Rows& q, const typename Math::Operand& keys,
                  const typename Math::Operand& values, const Rows& out, const Rows& slope,
                  const float* logsum, const HeadSlopes& to) {
  Math math;
  const typename Math::Operand queries(q, shape, kTiled | kWeighed);
  const typename Math::Operand along(slope, shape, kTiled | kWeighed);
  std::vector<float> probabilities(kTileRows * shape.tokens);
  std::vector<float> slopes(kTileRows * shape.tokens);
  ForEachTile(shape.tokens, [&](const Tile& tile) {
    math.Scores(tile, shape, queries, keys, probabilities);
    math.Scores(tile, shape, along, values, slopes);
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
    math.Weigh(tile, shape, slopes, keys, to.q);
    math.AddTurned(tile, shape, slopes, queries, to.k);
    math.AddTurned(tile, shape, probabilities, along, to.v);
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
template <typename Math>
std::pair<at::Tensor, at::Tensor> Forward(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& v) {
  const Shape shape(q, k);
  const at::Tensor out = HeadsInside(q, false);
  const at::Tensor logsum = at::empty({shape.batch, shape.heads, shape.tokens}, q.options());
  ForEachKvHead(shape, [&](int64_t batch, int64_t kv) {
    const typename Math::Operand keys(Rows(k, batch, kv), shape, kMet);
    const typename Math::Operand values(Rows(v, batch, kv), shape, kWeighed);
    for (int64_t head = kv * shape.share(); head < (kv + 1) * shape.share(); ++head) {
      ForwardHead<Math>(
          shape, Rows(q, batch, head), keys, values, Rows(out, batch, head),
          logsum.mutable_data_ptr<float>() + (batch * shape.heads + head) * shape.tokens);
    }
  });
  return {out, logsum};
}

template <typename Math>
variable_list Backward(const variable_list& saved, const at::Tensor& slope) {
  const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &logsum = saved[4];
  const Shape shape(q, k);
  const at::Tensor dq = HeadsInside(q, false), dk = HeadsInside(k, true), dv = HeadsInside(v, true);
  ForEachKvHead(shape, [&](int64_t batch, int64_t kv) {
    const typename Math::Operand keys(Rows(k, batch, kv), shape, kMet | kWeighed);
    const typename Math::Operand values(Rows(v, batch, kv), shape, kMet);
    for (int64_t head = kv * shape.share(); head < (kv + 1) * shape.share(); ++head) {
      BackwardHead<Math>(
          shape, Rows(q, batch, head), keys, values, Rows(out, batch, head),
          Rows(slope, batch, head),
          logsum.const_data_ptr<float>() + (batch * shape.heads + head) * shape.tokens,
          {Rows(dq, batch, head), Rows(dk, batch, kv), Rows(dv, batch, kv)});
    }
  });
  return {dq, dk, dv};
}

template <typename Math>
class Attention : public torch::autograd::Function<Attention<Math>> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v) {
    const auto [out, logsum] = Forward<Math>(q, k, v);
    context->save_for_backward({q, k, v, out, logsum});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& slopes) {
    return Backward<Math>(context->get_saved_variables(), UnitStride(slopes[0]));
  }
};

}  // namespace

bool FusedAttentionApplies(const at::Tensor& q, const at::Tensor& k) {
  return q.is_cpu() && q.scalar_type() == at::kFloat && q.size(2) == k.size(2) && simd::Available();
}

at::Tensor FusedCausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                ComputeDtype compute) {
  // Narrower heads fill no vector of pairs: slower than in fp32.
  constexpr int64_t kLeastDim = 16;
  const bool rounds =
      compute == ComputeDtype::kBfloat16 && q.size(3) >= kLeastDim && simd::HasBfloat16();
  return rounds ? Attention<Bfloat16>::apply(UnitStride(q), UnitStride(k), UnitStride(v))
                : Attention<Fp32>::apply(UnitStride(q), UnitStride(k), UnitStride(v));
}

}  // namespace quantry::engine
