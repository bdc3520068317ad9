#include "worker/engine/quant/mixed_binary.h"

namespace quantry::engine {

at::Tensor ColumnsWithout(const at::Tensor& salient, int64_t columns) {
  at::Tensor other = at::ones({columns}, at::kBool);
  other.index_fill_(0, salient.to(at::kLong), false);
  return other.nonzero().squeeze(-1);
}

at::Tensor MixedBinaryWeight::OtherColumns() const { return ColumnsWithout(salient, columns); }

at::Tensor MixedBinaryWeight::Dequantize() const {
  at::Tensor weight = at::empty({rows(), columns}, at::kFloat);
  at::Tensor grid = codes.to(at::kFloat).sub_(zeros.to(at::kFloat).unsqueeze(-1));
  weight.index_copy_(1, salient.to(at::kLong), grid.mul_(scales.unsqueeze(-1)));
  const at::Tensor plus = (row_offset + row_gain).unsqueeze(-1);
  const at::Tensor minus = (row_offset - row_gain).unsqueeze(-1);
  at::Tensor binary = at::where(signs.to(at::kBool), plus, minus);
  weight.index_copy_(1, OtherColumns(), binary.mul_(column_gain));
  return weight;
}

}  // namespace quantry::engine
