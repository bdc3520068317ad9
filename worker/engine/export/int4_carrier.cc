#include "worker/engine/export/int4_carrier.h"

#include "worker/engine/base/strings.h"
#include "worker/engine/export/packed_reader.h"

namespace quantry::engine {
namespace {

constexpr int kCarrierBits = 4;
constexpr int kCarrierZero = 8;
constexpr int kWidestBits = 3;

// code - zero spans [-qmax, qmax]: what the carrier must reach from its middle.
static_assert(kCarrierZero - ((1 << kWidestBits) - 1) >= 0 &&
              kCarrierZero + ((1 << kWidestBits) - 1) < (1 << kCarrierBits));

QuantizedLinear Carried(const QuantizedLinear& linear, const GridSpec& carrier) {
  const int64_t groups = linear.scales.size(1);
  const at::Tensor grouped = linear.codes.view({linear.codes.size(0), groups, -1});
  // Modulo 256 the sum is right whatever its order; the result is 1 .. 15.
  const at::Tensor shift = linear.zeros.neg().add(kCarrierZero).unsqueeze(-1);
  QuantizedLinear carried = linear;
  carried.grid = carrier;
  carried.codes = grouped.add(shift).view(linear.codes.sizes());
  carried.zeros = at::full_like(linear.zeros, kCarrierZero);
  return carried;
}

}  // namespace

Int4CarrierLayout::Int4CarrierLayout(const GridSpec& grid, at::ScalarType scale_dtype)
    : Layout(grid, scale_dtype), carrier_({kCarrierBits, grid.group_size, true}, scale_dtype) {}

std::vector<TensorSpec> Int4CarrierLayout::Specs(const PlannedLinear& linear) const {
  return carrier_.Specs(linear);
}

std::vector<at::Tensor> Int4CarrierLayout::Encode(const QuantizedLinear& linear) const {
  return carrier_.Encode(Carried(linear, carrier_.grid()));
}

// Integer by integer: code4 - 8 against code - zero.
std::string Int4CarrierLayout::Mismatch(const TensorReader& read, const PlannedLinear& linear,
                                        const QuantizedLinear& expected) const {
  const auto [rows, columns] = linear.shape;
  const at::Tensor shape = read(linear.module + ".weight_shape");
  if (!SameBytes(shape, at::tensor({rows, columns}, at::kLong))) return "weight_shape differs";
  const at::Tensor got =
      ReadPackedRows(read(linear.module + ".weight_packed"), columns, kCarrierBits);
  const at::Tensor codes = expected.codes.contiguous();
  const at::Tensor zeros = expected.zeros.contiguous();
  if (got.sizes() != codes.sizes()) return "codes have another shape";
  const auto* carried = got.const_data_ptr<uint8_t>();
  const auto* q = codes.const_data_ptr<uint8_t>();
  const auto* z = zeros.const_data_ptr<uint8_t>();
  const int64_t group = columns / zeros.size(1);
  for (int64_t i = 0; i < codes.numel(); ++i) {
    const int zero = z[i / columns * zeros.size(1) + i % columns / group];
    if (int{carried[i]} - kCarrierZero != int{q[i]} - zero) {
      return StrCat("codes differ at row ", i / columns, ", column ", i % columns);
    }
  }
  return CompareScales(read(linear.module + ".weight_scale"), expected, expected.scale_dtype);
}

void Int4CarrierLayout::Describe(nlohmann::ordered_json& config) const {
  carrier_.Describe(config);
}

std::string Int4CarrierLayout::Compatibility(const std::vector<PlannedLinear>& linears) const {
  return StrCat("Carries the ", grid().bits,
                "-bit model without loss in symmetric 4-bit codes: "
                "same values, the memory and speed of 4 bits. ",
                carrier_.Compatibility(linears));
}

std::string Int4CarrierLayout::Refuses(const GridSpec& grid) {
  if (grid.bits <= kWidestBits) return "";
  return StrCat("carries 2- and 3-bit codes in 4 bits, got ", grid.bits, " bits");
}

int64_t Int4CarrierLayout::StoredBits(const PlannedLinear& linear) const {
  return carrier_.StoredBits(linear);
}

}  // namespace quantry::engine
