#include "worker/engine/kernels/sign_product.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "worker/engine/base/avx2.h"
#include "worker/engine/base/parallel.h"

namespace quantry::engine {
namespace {

int64_t BlocksOf(int64_t tokens) { return (tokens + kSignTokens - 1) / kSignTokens; }

// uint8 [rows, columns / 4] of signs [rows, columns].
at::Tensor CodesOf(const at::Tensor& signs) {
  const int64_t rows = signs.size(0), columns = signs.size(1);
  const int64_t groups = SignCodes{nullptr, rows, columns}.groups();
  const at::Tensor whole = at::constant_pad_nd(signs, {0, groups * kSignsPerCode - columns});
  const at::Tensor places = at::tensor({1, 2, 4, 8}, at::kByte);
  return (whole.reshape({rows, groups, kSignsPerCode}) * places).sum(-1).to(at::kByte).contiguous();
}

// Block `block` of the rows of `matrix`; undefined gives no rows at all.
TokenRows RowsOf(const at::Tensor& matrix, int64_t block) {
  if (!matrix.defined()) return {nullptr, 0, 0};
  const int64_t first = block * kSignTokens, row = matrix.size(1);
  return {matrix.data_ptr<float>() + first * row, row,
          std::min<int64_t>(kSignTokens, matrix.size(0) - first)};
}

SignScales PointersOf(const SignProduct::Scales& scales) {
  return {scales.gain.const_data_ptr<float>(), scales.offset.const_data_ptr<float>(),
          scales.column.const_data_ptr<float>()};
}

}  // namespace

bool SignProduct::Available() { return HasAvx2(); }

SignProduct::SignProduct(const at::Tensor& signs, SignSums sums)
    : sums_(sums),
      rows_(signs.size(0)),
      columns_(signs.size(1)),
      by_row_(CodesOf(signs)),
      by_column_(CodesOf(signs.t())) {}

SignProduct::Kept SignProduct::AddTo(const at::Tensor& y, const at::Tensor& x,
                                     const Scales& scales) const {
  const int64_t blocks = BlocksOf(x.size(0));
  const Kept kept = {at::empty({blocks, SignTileRows(rows_), kSignTokens}, x.options()),
                     at::empty({blocks, kSignTokens}, x.options())};
  const SignCodes signs = {by_row_.const_data_ptr<uint8_t>(), rows_, columns_};
  const SignScales numbers = PointersOf(scales);
  float* tiles = kept.products.mutable_data_ptr<float>();
  float* totals = kept.totals.mutable_data_ptr<float>();
  ForEachIndex(blocks, 1, [&](int64_t block) {
    SignForwardBlock(sums_, signs, numbers, RowsOf(x, block), RowsOf(y, block),
                     tiles + block * SignTileRows(rows_) * kSignTokens,
                     totals + block * kSignTokens);
  });
  return kept;
}

SignProduct::Gradients SignProduct::Backward(const at::Tensor& slope, const at::Tensor& x,
                                             const Scales& scales, const Kept& kept,
                                             bool wants_x) const {
  const int64_t blocks = BlocksOf(x.size(0));
  Gradients gradients;
  if (wants_x) gradients.x = at::empty_like(x);
  // Of each block, one after the other: sums of a fixed order.
  const at::Tensor partial = at::empty({blocks, 2 * rows_ + columns_}, x.options());
  const SignCodes signs = {by_column_.const_data_ptr<uint8_t>(), columns_, rows_};
  const SignScales numbers = PointersOf(scales);
  const float* tiles = kept.products.const_data_ptr<float>();
  const float* totals = kept.totals.const_data_ptr<float>();
  float* sums = partial.mutable_data_ptr<float>();
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor scratch = at::empty({SignTileRows(columns_), kSignTokens}, x.options());
    for (int64_t block = begin; block < end; ++block) {
      float* at = sums + block * (2 * rows_ + columns_);
      SignBackwardBlock(sums_, signs, numbers, RowsOf(slope, block), RowsOf(x, block),
                        tiles + block * SignTileRows(rows_) * kSignTokens,
                        totals + block * kSignTokens, scratch.mutable_data_ptr<float>(),
                        RowsOf(gradients.x, block), {at, at + rows_, at + 2 * rows_});
    }
  });
  const at::Tensor total = partial.sum(0);
  gradients.scales = {total.slice(0, 0, rows_), total.slice(0, rows_, 2 * rows_),
                      total.slice(0, 2 * rows_)};
  return gradients;
}

}  // namespace quantry::engine
