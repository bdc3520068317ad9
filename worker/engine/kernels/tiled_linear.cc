#include "worker/engine/kernels/tiled_linear.h"

#include <algorithm>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/quant/packing.h"

namespace quantry::engine {
namespace {

// A weight of a tile, as a byte and as fp32.
constexpr int64_t kBytesATileWeight = sizeof(uint8_t) + sizeof(float);

at::Tensor BytesOf(const at::Tensor& values, int bits, const at::Device& device) {
  return PackRows(values, bits).view(at::kByte).to(device);
}

// code - z, fp32 [rows, columns]: small integers, as the signs are, so that
// products with them lose nothing to what both terms have in common.
at::Tensor CodeTile(const at::Tensor& bytes, int64_t columns, const at::Tensor& zeros) {
  return UnpackBytes(bytes, columns, MixedBinaryWeight::kCodeBits)
      .to(at::kFloat)
      .sub_(zeros.unsqueeze(1));
}

// -1 or +1, fp32 [rows, columns].
at::Tensor SignTile(const at::Tensor& bytes, int64_t columns) {
  return UnpackBytes(bytes, columns, 1).view(at::kChar).mul_(2).sub_(1).to(at::kFloat);
}

}  // namespace

TiledLinear::TiledLinear(const MixedBinaryWeight& weight, const at::Tensor& bias,
                         const at::Device& device, int64_t tile_bytes)
    : salient_(weight.salient.to(device, at::kLong)),
      others_(weight.OtherColumns().to(device)),
      codes_(BytesOf(weight.codes, MixedBinaryWeight::kCodeBits, device)),
      signs_(BytesOf(weight.signs, 1, device)),
      scales_(weight.scales.to(device)),
      zeros_(weight.zeros.to(device, at::kFloat)),
      row_gain_(weight.row_gain.to(device)),
      row_offset_(weight.row_offset.to(device)),
      column_gain_(weight.column_gain.to(device)),
      bias_(bias.defined() ? bias.to(device, at::kFloat) : at::zeros_like(scales_)),
      tile_rows_(std::clamp<int64_t>(tile_bytes / (kBytesATileWeight * weight.columns), 1,
                                     weight.rows())) {}

int64_t TiledLinear::bytes() const {
  int64_t sum = 0;
  for (const at::Tensor* tensor : {&salient_, &others_, &codes_, &signs_, &scales_, &zeros_,
                                   &row_gain_, &row_offset_, &column_gain_, &bias_}) {
    sum += static_cast<int64_t>(tensor->nbytes());
  }
  return sum;
}

at::Tensor TiledLinear::Apply(const at::Tensor& x) const {
  if (x.dim() < 1 || x.size(-1) != columns() || x.device() != scales_.device()) {
    throw EngineError(FailureClass::kBug, "INTERNAL",
                      StrCat("a tiled product wants activations on ", scales_.device(), " with ",
                             columns(), " columns, got ", x.sizes(), " on ", x.device()));
  }
  const at::Tensor flat = x.to(at::kFloat).reshape({-1, columns()});
  const at::Tensor xs = flat.index_select(1, salient_);
  const at::Tensor xn = flat.index_select(1, others_).mul_(column_gain_);
  const at::Tensor t = xn.sum(1, /*keepdim=*/true);
  // 0, or NaN for a token with a value that is not finite.
  const at::Tensor finite = flat.abs().amax(1, /*keepdim=*/true).mul_(0);
  at::Tensor y = at::empty({flat.size(0), rows()}, flat.options());
  for (int64_t first = 0; first < rows(); first += tile_rows_) {
    const int64_t count = std::min(tile_rows_, rows() - first);
    const auto tile = [&](const at::Tensor& all) { return all.narrow(0, first, count); };
    at::Tensor part = at::mm(xs, CodeTile(tile(codes_), xs.size(1), tile(zeros_)).t());
    part.mul_(tile(scales_)).add_(t * tile(row_offset_)).add_(tile(bias_)).add_(finite);
    const at::Tensor signs = at::mm(xn, SignTile(tile(signs_), xn.size(1)).t());
    y.narrow(1, first, count).copy_(part.addcmul_(signs, tile(row_gain_)));
  }
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = rows();
  return y.view(shape);
}

}  // namespace quantry::engine
