#include "worker/engine/export/packed_reader.h"

#include <bit>
#include <cstring>

#include "worker/engine/base/error.h"
#include "worker/engine/base/non_finite.h"
#include "worker/engine/base/parallel.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian");

// Code number i of a stream of `bytes` bytes: at most 8 bits, so in two bytes.
uint8_t CodeAt(const uint8_t* stream, int64_t bytes, int64_t i, int bits) {
  const int64_t first_bit = i * bits;
  const int64_t at = first_bit / 8;
  unsigned window = stream[at];
  if (at + 1 < bytes) window |= static_cast<unsigned>(stream[at + 1]) << 8;
  return static_cast<uint8_t>((window >> (first_bit % 8)) & ((1U << bits) - 1U));
}

std::string Described(const at::Tensor& tensor) {
  return StrCat(c10::toString(tensor.scalar_type()), " ", tensor.sizes());
}

void CheckPacked(const at::Tensor& packed, int64_t columns, int bits) {
  const bool matrix = packed.scalar_type() == at::kInt && packed.dim() == 2;
  // A word holds 32 codes at most: columns of a damaged file cannot overflow.
  if (matrix && columns >= 0 && columns / 32 <= packed.size(1) &&
      packed.size(1) == (columns * bits + 31) / 32) {
    return;
  }
  FailRead(StrCat("packed codes should be int32 with words for ", columns, " codes of ", bits,
                  " bits a stream, got ", Described(packed)));
}

}  // namespace

at::Tensor ReadPackedRows(const at::Tensor& packed, int64_t columns, int bits) {
  CheckPacked(packed, columns, bits);
  const at::Tensor source = packed.contiguous();
  const int64_t row_bytes = source.size(1) * 4;
  at::Tensor codes = at::empty({source.size(0), columns}, at::kByte);
  const auto* from = static_cast<const uint8_t*>(source.const_data_ptr());
  auto* to = codes.mutable_data_ptr<uint8_t>();
  ForEachIndex(source.size(0), 64, [&](int64_t row) {
    for (int64_t i = 0; i < columns; ++i) {
      to[row * columns + i] = CodeAt(from + row * row_bytes, row_bytes, i, bits);
    }
  });
  return codes;
}

at::Tensor ReadPackedColumns(const at::Tensor& packed, int64_t rows, int bits) {
  if (packed.dim() != 2)
    FailRead(StrCat("packed codes should be a matrix, got ", Described(packed)));
  return ReadPackedRows(packed.t().contiguous(), rows, bits).t().contiguous();
}

void FailRead(const std::string& message) {
  throw EngineError(FailureClass::kEnvironment, "OUTPUT_VERIFICATION_FAILED", message);
}

bool HoldsNumbers(const at::Tensor& values) {
  const at::ScalarType type = values.scalar_type();
  return type == at::kHalf || type == at::kBFloat16 || type == at::kFloat;
}

void CheckFiniteValues(const std::string& name, const at::Tensor& values) {
  if (!HoldsNumbers(values)) {
    FailRead(StrCat(name, " is ", Described(values), ", wanted F16, BF16 or F32"));
  }
  if (AllFinite(values)) return;
  FailRead(name + " holds NaN or infinity, wanted finite values");
}

bool SameBytes(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const at::Tensor left = a.contiguous();
  const at::Tensor right = b.contiguous();
  return std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

std::string CompareIntegers(const at::Tensor& codes, const at::Tensor& scales,
                            const at::Tensor& zeros, const QuantizedLinear& expected) {
  return CompareIntegers(codes, scales, zeros, expected, expected.scale_dtype);
}

std::string CompareIntegers(const at::Tensor& codes, const at::Tensor& scales,
                            const at::Tensor& zeros, const QuantizedLinear& expected,
                            at::ScalarType stored) {
  if (!SameBytes(codes, expected.codes)) return "codes differ";
  if (!SameBytes(zeros, expected.zeros)) return "zero points differ";
  return CompareScales(scales, expected, stored);
}

std::string CompareScales(const at::Tensor& scales, const QuantizedLinear& expected,
                          at::ScalarType stored) {
  if (!SameBytes(scales, expected.scales.to(stored))) return "scales differ";
  if (!SameBytes(scales.to(at::kFloat), expected.scales)) return "scales lost precision";
  return "";
}

}  // namespace quantry::engine
