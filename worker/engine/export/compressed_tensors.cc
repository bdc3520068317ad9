#include "worker/engine/export/compressed_tensors.h"

#include <nlohmann/json.hpp>
#include <set>

#include "worker/engine/base/strings.h"
#include "worker/engine/export/packed_reader.h"
#include "worker/engine/quant/packing.h"

namespace quantry::engine {
namespace {

// A release of the library whose readers unpack 3-bit codes the dense way
// (formats.md 3c, "Version trap"); 2, 4 and 8 bits read the same in all.
constexpr char kLibraryVersion[] = "0.20.0";

nlohmann::ordered_json WeightScheme(const GridSpec& grid) {
  nlohmann::ordered_json weights = {{"num_bits", grid.bits},
                                    {"type", "int"},
                                    {"symmetric", grid.symmetric},
                                    {"strategy", grid.group_size < 0 ? "channel" : "group"},
                                    {"group_size", nullptr},
                                    {"dynamic", false},
                                    {"actorder", nullptr},
                                    {"block_structure", nullptr},
                                    {"observer", "memoryless_minmax"},
                                    {"observer_kwargs", nlohmann::ordered_json::object()},
                                    {"scale_dtype", nullptr},
                                    {"zp_dtype", nullptr}};
  if (grid.group_size > 0) weights["group_size"] = grid.group_size;
  if (!grid.symmetric) weights["zp_dtype"] = "torch.int8";
  return weights;
}

std::string EnginesFor(const GridSpec& grid) {
  if (grid.symmetric && (grid.bits == 4 || grid.bits == 8)) {
    return "Loads in vLLM (Marlin, Machete), SGLang and transformers with compressed-tensors.";
  }
  const std::string library =
      grid.bits == 3 ? " (compressed-tensors of late June 2026 or newer: dense 3-bit packing)" : "";
  if (grid.symmetric) {
    return "Loads in vLLM of mid-2026 or newer on CUDA (Humming kernels) and, decompressed, in "
           "transformers" +
           library + "; not in SGLang (4 and 8 bits only).";
  }
  // Seen with the versions docs/formats/README.md names.
  const std::string refused = StrCat(
      " transformers 5.24 refuses asymmetric zero points, compressed-tensors' own functions "
      "read them",
      library, ": for transformers use symmetric=true",
      grid.bits < 4 ? " or output int4-carrier." : ".");
  if (grid.bits == 4) return "Loads in vLLM; SGLang only in part (asymmetric)." + refused;
  if (grid.bits == 8) {
    return "Asymmetric 8-bit kernels are rare: for vLLM and SGLang use symmetric=true." + refused;
  }
  return "Not in vLLM (asymmetric below 4 bits is not merged, vllm#46528; use symmetric=true, or "
         "output dense) and not in SGLang (4 and 8 bits only)." +
         refused;
}

}  // namespace

std::vector<TensorSpec> CompressedTensorsLayout::Specs(const PlannedLinear& linear) const {
  const auto [rows, columns] = linear.shape;
  std::vector<TensorSpec> specs = {
      {linear.module + ".weight_packed", at::kInt, {rows, PackedWords(columns, grid().bits)}},
      {linear.module + ".weight_scale", scale_dtype(), {rows, Groups(linear)}},
      {linear.module + ".weight_shape", at::kLong, {2}}};
  if (!grid().symmetric) {
    specs.push_back({linear.module + ".weight_zero_point",
                     at::kInt,
                     {PackedWords(rows, grid().bits), Groups(linear)}});
  }
  return specs;
}

std::vector<at::Tensor> CompressedTensorsLayout::Encode(const QuantizedLinear& linear) const {
  std::vector<at::Tensor> values = {
      PackRows(linear.codes, grid().bits), linear.scales.to(scale_dtype()),
      at::tensor({linear.codes.size(0), linear.codes.size(1)}, at::kLong)};
  if (!grid().symmetric) values.push_back(PackColumns(linear.zeros, grid().bits));
  return values;
}

std::string CompressedTensorsLayout::Mismatch(const TensorReader& read, const PlannedLinear& linear,
                                              const QuantizedLinear& expected) const {
  const auto [rows, columns] = linear.shape;
  const at::Tensor shape = read(linear.module + ".weight_shape");
  if (!SameBytes(shape, at::tensor({rows, columns}, at::kLong))) return "weight_shape differs";
  const at::Tensor codes =
      ReadPackedRows(read(linear.module + ".weight_packed"), columns, grid().bits);
  at::Tensor zeros = at::full({rows, Groups(linear)}, 1 << (grid().bits - 1), at::kByte);
  if (!grid().symmetric) {
    zeros = ReadPackedColumns(read(linear.module + ".weight_zero_point"), rows, grid().bits);
  }
  return CompareIntegers(codes, read(linear.module + ".weight_scale"), zeros, expected);
}

void CompressedTensorsLayout::Describe(nlohmann::ordered_json& config) const {
  config["quantization_config"] = {{"quant_method", "compressed-tensors"},
                                   {"format", "pack-quantized"},
                                   {"quantization_status", "compressed"},
                                   {"version", kLibraryVersion},
                                   {"config_groups",
                                    {{"group_0",
                                      {{"targets", nlohmann::ordered_json::array({"Linear"})},
                                       {"format", "pack-quantized"},
                                       {"weights", WeightScheme(grid())},
                                       {"input_activations", nullptr},
                                       {"output_activations", nullptr}}}}},
                                   {"ignore", nlohmann::ordered_json::array({"lm_head"})},
                                   {"kv_cache_scheme", nullptr},
                                   {"global_compression_ratio", nullptr},
                                   {"sparsity_config", nlohmann::ordered_json::object()},
                                   {"transform_config", nlohmann::ordered_json::object()}};
}

std::string CompressedTensorsLayout::Compatibility(
    const std::vector<PlannedLinear>& linears) const {
  std::string note = EnginesFor(grid());
  const int64_t group = grid().group_size;
  if (group > 0 && group != 32 && group != 64 && group != 128) {
    note += StrCat(" Fused kernels know group sizes 32, 64, 128 and per channel, not ", group,
                   ": readers that decompress take it.");
  }
  std::set<std::string> odd;
  for (const PlannedLinear& linear : linears) {
    const std::string& module = linear.module;
    const LinearShape& shape = linear.shape;
    if (shape.in % 32 != 0 || shape.out * grid().bits % 32 != 0) {
      odd.insert(
          StrCat(module.substr(module.rfind('.') + 1), " [", shape.out, ", ", shape.in, "]"));
    }
  }
  if (!odd.empty()) {
    note += StrCat(" Shapes that are no multiple of a packed word (", Join(odd),
                   "): fused kernels refuse these, readers that decompress take them.");
  }
  return note;
}

}  // namespace quantry::engine
