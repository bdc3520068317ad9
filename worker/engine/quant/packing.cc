#include "worker/engine/quant/packing.h"

#include <string>

#include "worker/engine/base/error.h"
#include "worker/engine/base/parallel.h"

namespace quantry::engine {
namespace {

constexpr int kWordBits = 32;
constexpr int64_t kRowsATask = 64;

void CheckArguments(const at::Tensor& tensor, at::ScalarType dtype, int bits) {
  if (tensor.dim() == 2 && tensor.scalar_type() == dtype && bits >= 1 && bits <= 8) return;
  throw EngineError(FailureClass::kBug, "INTERNAL",
                    "packing wants a matrix of bytes or 32-bit words and 1 to 8 bits, got " +
                        std::to_string(tensor.dim()) + " dimensions of " +
                        std::string(c10::toString(tensor.scalar_type())) + " and " +
                        std::to_string(bits) + " bits");
}

}  // namespace

int64_t PackedWords(int64_t count, int bits) { return (count * bits + kWordBits - 1) / kWordBits; }

void PackStream(const uint8_t* codes, int64_t count, int bits, uint32_t* words) {
  uint64_t pending = 0;
  int filled = 0;
  uint8_t seen = 0;
  for (int64_t i = 0; i < count; ++i) {
    seen |= codes[i];
    pending |= static_cast<uint64_t>(codes[i]) << filled;
    filled += bits;
    if (filled >= kWordBits) {
      *words++ = static_cast<uint32_t>(pending);
      pending >>= kWordBits;
      filled -= kWordBits;
    }
  }
  if (filled > 0) *words = static_cast<uint32_t>(pending);
  if ((static_cast<unsigned>(seen) >> bits) != 0) {
    throw EngineError(FailureClass::kBug, "INTERNAL",
                      "a code to pack does not fit into " + std::to_string(bits) + " bits");
  }
}

void UnpackStream(const uint32_t* words, int64_t count, int bits, uint8_t* codes) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  uint64_t pending = 0;
  int filled = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (filled < bits) {
      pending |= static_cast<uint64_t>(*words++) << filled;
      filled += kWordBits;
    }
    codes[i] = static_cast<uint8_t>(pending & mask);
    pending >>= bits;
    filled -= bits;
  }
}

at::Tensor PackRows(const at::Tensor& codes, int bits) {
  CheckArguments(codes, at::kByte, bits);
  const at::Tensor source = codes.cpu().contiguous();
  const int64_t columns = source.size(1);
  const int64_t words = PackedWords(columns, bits);
  at::Tensor packed = at::zeros({source.size(0), words}, at::kInt);
  const uint8_t* from = source.const_data_ptr<uint8_t>();
  auto* to = reinterpret_cast<uint32_t*>(packed.mutable_data_ptr<int32_t>());
  ForEachIndex(source.size(0), kRowsATask, [&](int64_t row) {
    PackStream(from + row * columns, columns, bits, to + row * words);
  });
  return packed;
}

at::Tensor UnpackRows(const at::Tensor& packed, int64_t columns, int bits) {
  CheckArguments(packed, at::kInt, bits);
  const at::Tensor source = packed.cpu().contiguous();
  const int64_t words = source.size(1);
  if (words != PackedWords(columns, bits)) {
    throw EngineError(FailureClass::kBug, "INTERNAL",
                      std::to_string(columns) + " codes of " + std::to_string(bits) +
                          " bits take " + std::to_string(PackedWords(columns, bits)) +
                          " words a row, got " + std::to_string(words));
  }
  at::Tensor codes = at::empty({source.size(0), columns}, at::kByte);
  const auto* from = reinterpret_cast<const uint32_t*>(source.const_data_ptr<int32_t>());
  uint8_t* to = codes.mutable_data_ptr<uint8_t>();
  ForEachIndex(source.size(0), kRowsATask, [&](int64_t row) {
    UnpackStream(from + row * words, columns, bits, to + row * columns);
  });
  return codes;
}

at::Tensor UnpackBytes(const at::Tensor& bytes, int64_t columns, int bits) {
  CheckArguments(bytes, at::kByte, bits);
  const at::Tensor shifts = at::arange(0, 8, bits, bytes.options());
  return at::bitwise_right_shift(bytes.unsqueeze(-1), shifts)
      .bitwise_and_((1 << bits) - 1)
      .view({bytes.size(0), bytes.size(1) * shifts.size(0)})
      .narrow(1, 0, columns);
}

at::Tensor PackColumns(const at::Tensor& values, int bits) {
  return PackRows(values.t(), bits).t().contiguous();
}

at::Tensor UnpackColumns(const at::Tensor& packed, int64_t rows, int bits) {
  return UnpackRows(packed.t(), rows, bits).t().contiguous();
}

}  // namespace quantry::engine
