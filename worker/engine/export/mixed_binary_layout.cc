#include "worker/engine/export/mixed_binary_layout.h"

#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/export/packed_reader.h"

namespace quantry::engine {
namespace {

// The layout's arithmetic for LLaMA-7B's q and o projections, and for a narrow
// odd one: rows * (code bytes + sign bytes + 6) + zeros + r2 + mask.
static_assert(MixedBinaryBytes(4096, 4096, 820, true) ==
              4096 * (410 + 410 + 6) + 2048 + 2 * 3276 + 512);
static_assert(MixedBinaryBytes(3, 13, 3, false) == 3 * (2 + 2 + 6) + 2 + 2 * 10);
static_assert(MixedBinaryBits(4096, 4096, 820, true) <=
              8 * MixedBinaryBytes(4096, 4096, 820, true));

int64_t Halves(int64_t count) { return (count + 1) / 2; }
int64_t Eighths(int64_t count) { return (count + 7) / 8; }

// uint8 [rows, columns] of values below 2^bits -> uint8 [rows, bytes], value c
// in bits [c * bits mod 8, ..) of byte c * bits / 8.
at::Tensor PackBytes(const at::Tensor& values, int bits) {
  const int64_t per_byte = 8 / bits;
  const int64_t rows = values.size(0), columns = values.size(1);
  const int64_t bytes = (columns + per_byte - 1) / per_byte;
  const at::Tensor source = values.contiguous();
  at::Tensor packed = at::zeros({rows, bytes}, at::kByte);
  const auto* from = source.const_data_ptr<uint8_t>();
  auto* to = packed.mutable_data_ptr<uint8_t>();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < columns; ++c) {
      to[row * bytes + c / per_byte] |=
          static_cast<uint8_t>(from[row * columns + c] << (c % per_byte * bits));
    }
  }
  return packed;
}

// The tensor, which must have this type and shape.
at::Tensor ReadAs(const TensorReader& read, const std::string& name, at::ScalarType dtype,
                  const std::vector<int64_t>& shape) {
  at::Tensor value = read(name);
  if (value.scalar_type() != dtype || value.sizes() != shape) {
    FailRead(StrCat(name, " should be ", c10::toString(dtype), " ", at::IntArrayRef(shape),
                    ", got ", c10::toString(value.scalar_type()), " ", value.sizes()));
  }
  return value.contiguous();
}

// Nibble i of a row of bytes.
constexpr uint8_t NibbleAt(const uint8_t* bytes, int64_t i) {
  return (bytes[i >> 1] >> ((i & 1) * 4)) & 15;
}
// Bit i of a row of bytes.
constexpr uint8_t BitAt(const uint8_t* bytes, int64_t i) { return (bytes[i >> 3] >> (i & 7)) & 1; }

// The order within a byte, as the format's page draws it: from the lowest bit up.
constexpr uint8_t kDrawn[] = {0x21, 0x83};
static_assert(NibbleAt(kDrawn, 0) == 1 && NibbleAt(kDrawn, 1) == 2 && NibbleAt(kDrawn, 2) == 3 &&
              NibbleAt(kDrawn, 3) == 8);
static_assert(BitAt(kDrawn, 0) == 1 && BitAt(kDrawn, 1) == 0 && BitAt(kDrawn, 4) == 0 &&
              BitAt(kDrawn, 5) == 1 && BitAt(kDrawn, 8) == 1 && BitAt(kDrawn, 9) == 1 &&
              BitAt(kDrawn, 14) == 0 && BitAt(kDrawn, 15) == 1);

// uint8 [rows, columns] out of [rows, bytes], one value after the other.
at::Tensor UnpackWith(const at::Tensor& packed, int64_t columns,
                      uint8_t (*value_at)(const uint8_t* bytes, int64_t i)) {
  const int64_t rows = packed.size(0), bytes = packed.size(1);
  at::Tensor values = at::empty({rows, columns}, at::kByte);
  const auto* from = packed.const_data_ptr<uint8_t>();
  auto* to = values.mutable_data_ptr<uint8_t>();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < columns; ++c) to[row * columns + c] = value_at(from + row * bytes, c);
  }
  return values;
}

// int32 [k] of the mask's ones.
at::Tensor ReadMask(const TensorReader& read, const PlannedLinear& linear) {
  const std::string name = linear.mask_module + ".mask";
  const at::Tensor bytes = ReadAs(read, name, at::kByte, {Eighths(linear.shape.in)});
  const at::Tensor mask = UnpackWith(bytes.unsqueeze(0), linear.shape.in, BitAt);
  at::Tensor salient = mask.squeeze(0).nonzero().squeeze(-1).to(at::kInt);
  if (salient.size(0) != linear.salient) {
    FailRead(StrCat(name, " should have ", linear.salient, " ones, got ", salient.size(0)));
  }
  return salient;
}

}  // namespace

std::vector<TensorSpec> MixedBinaryLayout::Specs(const PlannedLinear& linear) const {
  const auto [rows, columns] = linear.shape;
  const int64_t others = columns - linear.salient;
  const auto name = [&](const char* part) { return linear.module + part; };
  std::vector<TensorSpec> specs = {
      {name(".salient_codes"), at::kByte, {rows, Halves(linear.salient)}},
      {name(".salient_scales"), at::kHalf, {rows}},
      {name(".salient_zeros"), at::kByte, {Halves(rows)}},
      {name(".signs"), at::kByte, {rows, Eighths(others)}},
      {name(".row_gain"), at::kHalf, {rows}},
      {name(".row_offset"), at::kHalf, {rows}},
      {name(".column_gain"), at::kHalf, {others}}};
  if (linear.holds_mask()) specs.push_back({name(".mask"), at::kByte, {Eighths(columns)}});
  return specs;
}

// The mask comes last: a linear which shares another's does not write it.
std::vector<at::Tensor> MixedBinaryLayout::Encode(const QuantizedLinear& linear) const {
  const MixedBinaryWeight& weight = linear.mixed.value();
  at::Tensor mask = at::zeros({1, weight.columns}, at::kByte);
  mask.index_fill_(1, weight.salient.to(at::kLong), 1);
  return {PackBytes(weight.codes, 4),
          weight.scales.to(at::kHalf),
          PackBytes(weight.zeros.unsqueeze(0), 4).squeeze(0),
          PackBytes(weight.signs, 1),
          weight.row_gain.to(at::kHalf),
          weight.row_offset.to(at::kHalf),
          weight.column_gain.to(at::kHalf),
          PackBytes(mask, 1).squeeze(0)};
}

MixedBinaryWeight ReadMixedBinary(const TensorReader& read, const PlannedLinear& linear) {
  const auto [rows, columns] = linear.shape;
  const int64_t others = columns - linear.salient;
  const auto half = [&](const char* part, int64_t count) {
    const std::string name = linear.module + part;
    const at::Tensor values = ReadAs(read, name, at::kHalf, {count}).to(at::kFloat);
    CheckFiniteValues(name, values);
    return values;
  };
  const auto bytes = [&](const char* part, const std::vector<int64_t>& shape) {
    return ReadAs(read, linear.module + part, at::kByte, shape);
  };
  MixedBinaryWeight weight;
  weight.columns = columns;
  weight.salient = ReadMask(read, linear);
  weight.codes =
      UnpackWith(bytes(".salient_codes", {rows, Halves(linear.salient)}), linear.salient, NibbleAt);
  weight.scales = half(".salient_scales", rows);
  weight.zeros =
      UnpackWith(bytes(".salient_zeros", {Halves(rows)}).unsqueeze(0), rows, NibbleAt).squeeze(0);
  weight.signs = UnpackWith(bytes(".signs", {rows, Eighths(others)}), others, BitAt);
  weight.row_gain = half(".row_gain", rows);
  weight.row_offset = half(".row_offset", rows);
  weight.column_gain = half(".column_gain", others);
  return weight;
}

std::string MixedBinaryLayout::Mismatch(const TensorReader& read, const PlannedLinear& linear,
                                        const QuantizedLinear& expected) const {
  const MixedBinaryWeight& wanted = expected.mixed.value();
  const MixedBinaryWeight got = ReadMixedBinary(read, linear);
  if (!SameBytes(got.salient, wanted.salient)) return "salient columns differ";
  if (!SameBytes(got.codes, wanted.codes)) return "4-bit codes differ";
  if (!SameBytes(got.scales, wanted.scales)) return "4-bit scales differ";
  if (!SameBytes(got.zeros, wanted.zeros)) return "4-bit zero points differ";
  if (!SameBytes(got.signs, wanted.signs)) return "signs differ";
  if (!SameBytes(got.row_gain, wanted.row_gain)) return "row gains differ";
  if (!SameBytes(got.row_offset, wanted.row_offset)) return "row offsets differ";
  if (!SameBytes(got.column_gain, wanted.column_gain)) return "column gains differ";
  return "";
}

void MixedBinaryLayout::Describe(nlohmann::ordered_json& config) const {
  config["quantization_config"] = {
      {"quant_method", "quantry"}, {"schema", kMixedContainerSchema}, {"kind", kMixedKind}};
}

std::map<std::string, std::string> MixedBinaryLayout::Metadata(
    const std::vector<PlannedLinear>& linears) const {
  nlohmann::json described = nlohmann::json::object();
  for (const PlannedLinear& linear : linears) {
    described[linear.module] = {{"kind", kMixedKind},
                                {"shape", {linear.shape.out, linear.shape.in}},
                                {"salient", linear.salient},
                                {"mask", linear.mask_module + ".mask"}};
  }
  const nlohmann::json container = {{"schema", kMixedContainerSchema}, {"linears", described}};
  return {{"format", "pt"}, {"quantry", container.dump()}};
}

std::string MixedBinaryLayout::Compatibility(const std::vector<PlannedLinear>&) const {
  return "Read by quantry-engine (unpack turns it into a dense checkpoint). Holds exactly the "
         "signs, 4-bit codes and gains; no other engine reads it.";
}

int64_t MixedBinaryLayout::StoredBits(const PlannedLinear& linear) const {
  const auto [rows, columns] = linear.shape;
  return 8 * MixedBinaryBytes(rows, columns, linear.salient, linear.holds_mask());
}

}  // namespace quantry::engine
