#include "worker/engine/kernels/packed_linear.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/kernels/fixed_point.h"

namespace quantry::engine {
namespace {

// Tokens whose tables exist at once: 16 bytes a column and token.
constexpr int64_t kTokensAtOnce = 8;
// Weights times tokens worth a thread of their own, about 20 us.
constexpr int64_t kWorkPerThread = int64_t{1} << 21;

template <typename T>
std::vector<T> Values(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.contiguous();
  const T* data = flat.const_data_ptr<T>();
  return std::vector<T>(data, data + flat.numel());
}

std::vector<float> Floats(const at::Tensor& tensor) { return Values<float>(tensor.to(at::kFloat)); }

BitTiles TilesOf(const at::Tensor& values, int bits) {
  const at::Tensor matrix = values.contiguous();
  return BitTiles(matrix.const_data_ptr<uint8_t>(), matrix.size(0), matrix.size(1), bits);
}

}  // namespace

// Activations of a few tokens as the kernel wants them.
struct PackedLinear::Tables {
  int64_t tokens = 0;
  std::unique_ptr<uint8_t[]> codes, signs;  // [tokens, groups * kTableBytes]
  FixedPoint xs[kTokensAtOnce];             // of the salient columns
  FixedPoint xn[kTokensAtOnce];             // of the others
};

PackedLinear::PackedLinear(const MixedBinaryWeight& weight, const at::Tensor& bias,
                           const BitKernel& kernel)
    : kernel_(&kernel),
      columns_(weight.columns),
      salient_(Values<int32_t>(weight.salient)),
      others_(Values<int32_t>(weight.OtherColumns().to(at::kInt))),
      codes_(TilesOf(weight.codes, MixedBinaryWeight::kCodeBits)),
      signs_(TilesOf(weight.signs, 1)),
      scales_(Floats(weight.scales)),
      zeros_(Floats(weight.zeros)),
      row_gain_(Floats(weight.row_gain)),
      row_offset_(Floats(weight.row_offset)),
      column_gain_(Floats(weight.column_gain)),
      bias_(bias.defined() ? Floats(bias) : std::vector<float>(weight.rows(), 0.0F)) {}

int64_t PackedLinear::bytes() const {
  const auto of = [](const auto& v) { return static_cast<int64_t>(v.size() * sizeof(v[0])); };
  return codes_.bytes() + signs_.bytes() + of(salient_) + of(others_) + of(scales_) + of(zeros_) +
         of(row_gain_) + of(row_offset_) + of(column_gain_) + of(bias_);
}

void PackedLinear::Prepare(const float* x, int64_t tokens, Tables* tables) const {
  tables->tokens = tokens;
  at::parallel_for(0, tokens, 1, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> values(std::max(codes_.padded_columns(), signs_.padded_columns()));
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x + t * columns_;
      tables->xs[t] = ToFixedPoint(row, salient_.data(), nullptr, codes_.columns(),
                                   codes_.padded_columns(), values.data());
      kernel_->build_tables(values.data(), codes_.groups(),
                            tables->codes.get() + t * codes_.groups() * kTableBytes);
      tables->xn[t] = ToFixedPoint(row, others_.data(), column_gain_.data(), signs_.columns(),
                                   signs_.padded_columns(), values.data());
      kernel_->build_tables(values.data(), signs_.groups(),
                            tables->signs.get() + t * signs_.groups() * kTableBytes);
    }
  });
}

void PackedLinear::Multiply(const Tables& tables, int64_t first, int64_t last, float* y) const {
  const int64_t stride = (last - first) * kTileRows;
  std::vector<uint64_t> codes(tables.tokens * stride, 0), signs(tables.tokens * stride, 0);
  codes_.Accumulate(*kernel_, first, last, tables.codes.get(), tables.tokens, codes.data(), stride);
  signs_.Accumulate(*kernel_, first, last, tables.signs.get(), tables.tokens, signs.data(), stride);
  const int64_t end = std::min(last * kTileRows, rows());
  for (int64_t t = 0; t < tables.tokens; ++t) {
    const FixedPoint& xs = tables.xs[t];
    const FixedPoint& xn = tables.xn[t];
    const int64_t code_offset = xs.offset * codes_.plane_weights();
    const auto u = static_cast<double>(xs.sum), total = static_cast<double>(xn.sum);
    for (int64_t i = first * kTileRows, at = t * stride; i < end; ++i, ++at) {
      const auto q = static_cast<double>(static_cast<int64_t>(codes[at]) - code_offset);
      const auto plus = static_cast<double>(static_cast<int64_t>(signs[at]) - xn.offset);
      const double salient = static_cast<double>(xs.step) * scales_[i] * (q - zeros_[i] * u);
      const double others = static_cast<double>(xn.step) *
                            (row_gain_[i] * (2 * plus - total) + row_offset_[i] * total);
      y[t * rows() + i] = static_cast<float>(salient + others + bias_[i]);
    }
  }
}

at::Tensor PackedLinear::Apply(const at::Tensor& x) const {
  if (x.dim() < 1 || x.size(-1) != columns_ || !x.is_cpu()) {
    throw EngineError(FailureClass::kBug, "INTERNAL",
                      StrCat("a packed product wants CPU activations with ", columns_,
                             " columns, got ", x.sizes(), " on ", x.device()));
  }
  const at::Tensor flat = x.to(at::kFloat).reshape({-1, columns_}).contiguous();
  const int64_t tokens = flat.size(0);
  at::Tensor result = at::empty({tokens, rows()}, at::kFloat);
  const int64_t at_once = std::min(tokens, kTokensAtOnce);
  Tables tables;
  tables.codes.reset(new uint8_t[at_once * codes_.groups() * kTableBytes]);
  tables.signs.reset(new uint8_t[at_once * signs_.groups() * kTableBytes]);
  for (int64_t first = 0; first < tokens; first += at_once) {
    const int64_t count = std::min(at_once, tokens - first);
    Prepare(flat.const_data_ptr<float>() + first * columns_, count, &tables);
    float* y = result.mutable_data_ptr<float>() + first * rows();
    const int64_t grain = std::max<int64_t>(1, kWorkPerThread / (columns_ * kTileRows * count));
    at::parallel_for(0, codes_.tiles(), grain,
                     [&](int64_t begin, int64_t end) { Multiply(tables, begin, end, y); });
  }
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = rows();
  return result.view(shape);
}

}  // namespace quantry::engine
