#include "worker/engine/export/unpack.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <system_error>
#include <vector>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/export/awq_gemm.h"
#include "worker/engine/export/checked_input.h"
#include "worker/engine/export/gptq.h"
#include "worker/engine/export/manifest_check.h"
#include "worker/engine/export/mixed_binary_layout.h"
#include "worker/engine/export/model_files.h"
#include "worker/engine/export/output_reader.h"
#include "worker/engine/export/packed_reader.h"
#include "worker/engine/model/config.h"
#include "worker/engine/model/sharded_writer.h"

namespace quantry::engine {
namespace {

constexpr int kUsage = 2;

// Names a layout gives the parts of a linear.
struct PartNames {
  std::string stem;  // of the weight files
  std::string codes;
  std::string scales;
  std::string zeros;
  std::string shape;        // empty: the layout does not store it
  std::string_view schema;  // of the quantry metadata; empty: the layout has none
  // Other parts, which unpacking takes along.
  std::vector<std::string> more = {};
};

const PartNames kQuantry = {"model.quantry", ".codes", ".scales",
                            ".zeros",        "",       kGridContainerSchema};
const PartNames kMixedBinary = {
    "model.quantry",
    ".signs",
    ".salient_scales",
    ".salient_zeros",
    "",
    kMixedContainerSchema,
    {".salient_codes", ".row_gain", ".row_offset", ".column_gain", ".mask"}};
const PartNames kCompressedTensors = {
    "model", ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ""};
const PartNames kGptq = {"model", ".qweight", ".scales", ".qzeros", "", "", {".g_idx"}};
const PartNames kAwq = {"model", ".qweight", ".scales", ".qzeros", "", ""};

struct Source {
  const PartNames* parts = nullptr;
  nlohmann::ordered_json config;  // without quantization_config
  GridSpec grid;
  GptqVersion gptq = GptqVersion::kV2;
};

[[noreturn]] void Refuse(const std::string& dir, const std::string& why) {
  throw UserError("INVALID_CHECKPOINT",
                  StrCat(dir, " cannot be unpacked: ", why,
                         "; wanted a quantry, compressed-tensors, GPTQ or AWQ folder"),
                  {{"path", dir}});
}

// checkpoint_format of a GPTQ folder, or its newer name, format; none is the oldest.
GptqVersion VersionOf(const std::string& dir, const nlohmann::ordered_json& quantization) {
  const std::string newer = quantization.value("format", "gptq");
  const std::string format = quantization.value("checkpoint_format", newer);
  if (quantization.contains("format") && format != newer) {
    Refuse(dir, StrCat("its checkpoint_format is ", Printable(format), ", its format ",
                       Printable(newer)));
  }
  if (format == "gptq_v2") return GptqVersion::kV2;
  if (format != "gptq") Refuse(dir, "its checkpoint_format is " + Printable(format));
  return GptqVersion::kV1;
}

// The grid of a compressed-tensors folder, where one holds for all of it and columns are in order.
GridSpec CompressedGrid(const std::string& dir, const nlohmann::ordered_json& quantization) {
  const auto& groups = quantization.at("config_groups");
  if (groups.size() != 1) Refuse(dir, StrCat("it has ", groups.size(), " config_groups, wanted 1"));
  const auto& weights = groups.front().at("weights");
  if (weights.value("type", "int") != "int") {
    Refuse(dir, "its weights are of type " + Printable(weights.at("type").dump()));
  }
  const nlohmann::ordered_json order = weights.value("actorder", nlohmann::ordered_json());
  if (!order.is_null() && order != "static" && order != "weight") {
    Refuse(dir, StrCat("its columns are ordered by actorder ", Printable(order.dump()),
                       ", wanted null, \"static\" or \"weight\""));
  }
  return {weights.at("num_bits"), -1, weights.at("symmetric")};
}

Source Describe(const std::string& dir) {
  const std::string path = dir + "/config.json";
  const std::string text = ReadConfigText(dir, kMaxConfigBytes);
  ParseJson(text, path, "INVALID_CHECKPOINT");
  Source source;
  source.config = nlohmann::ordered_json::parse(text);
  if (!source.config.contains("quantization_config")) Refuse(dir, "config.json names no layout");
  const nlohmann::ordered_json quantization = source.config["quantization_config"];
  source.config.erase("quantization_config");
  try {
    const std::string schema = quantization.value("schema", "");
    if (quantization.at("quant_method") == "quantry" && schema == kMixedContainerSchema) {
      source.parts = &kMixedBinary;
    } else if (quantization.at("quant_method") == "quantry") {
      if (schema != kGridContainerSchema) {
        Refuse(dir, StrCat("its schema is \"", Printable(schema), "\", this engine knows ",
                           kGridContainerSchema, " and ", kMixedContainerSchema));
      }
      source.parts = &kQuantry;
      source.grid = {quantization.at("bits"), quantization.at("group_size"),
                     quantization.at("symmetric")};
    } else if (quantization.at("quant_method") == "gptq") {
      source.parts = &kGptq;
      source.grid.bits = quantization.at("bits");
      source.gptq = VersionOf(dir, quantization);
    } else if (quantization.at("quant_method") == "awq") {
      if (quantization.at("bits") != 4 || quantization.at("version") != "gemm") {
        Refuse(dir, "only AWQ of 4 bits and version gemm is known");
      }
      source.parts = &kAwq;
    } else if (quantization.at("format") == "pack-quantized") {
      source.parts = &kCompressedTensors;
      source.grid = CompressedGrid(dir, quantization);
    }
  } catch (const nlohmann::json::exception& error) {
    Refuse(dir, StrCat("config.json: ", error.what()));
  }
  if (source.parts == nullptr) Refuse(dir, "its layout is another");
  if (source.grid.bits < 1 || source.grid.bits > 8) Refuse(dir, "bits must be 1 to 8");
  return source;
}

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() > end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// [rows, columns] of a linear: stored, or what the codes and the input say.
std::vector<int64_t> StatedShape(const OutputReader& reader, const Source& source,
                                 const std::string& module, const nlohmann::json& shapes) {
  const at::Tensor codes = reader.Read(module + source.parts->codes);
  if (codes.dim() != 2) throw UserError("INVALID_CHECKPOINT", module + ": codes are no matrix");
  if (source.parts == &kGptq) {
    return {codes.size(1), reader.Read(module + kGptq.more[0]).numel()};
  }
  if (source.parts == &kAwq) return {codes.size(1) * 8, codes.size(0)};
  if (!source.parts->shape.empty()) {
    const at::Tensor shape = reader.Read(module + source.parts->shape);
    if (shape.scalar_type() != at::kLong || shape.dim() != 1 || shape.numel() != 2) {
      throw UserError("INVALID_CHECKPOINT", module + ": weight_shape must be two int64");
    }
    return {codes.size(0), shape[1].item<int64_t>()};
  }
  return {codes.size(0), shapes.at(module).at("shape").at(1).get<int64_t>()};
}

// The same, refused where no weight is so.
std::vector<int64_t> ShapeOf(const OutputReader& reader, const Source& source,
                             const std::string& module, const nlohmann::json& shapes) {
  std::vector<int64_t> shape = StatedShape(reader, source, module, shapes);
  for (const int64_t side : shape) {
    if (side > 0 && side <= kMostSide) continue;
    throw UserError("INVALID_CHECKPOINT",
                    StrCat(module, ": no weight has the shape ", at::IntArrayRef(shape)));
  }
  return shape;
}

// Whatever config.json says: each shard's own word on how it is laid out.
void CheckSchema(const nlohmann::json& container, std::string_view wanted) {
  const auto got = container.at("schema").get<std::string>();
  if (got == wanted) return;
  throw UserError("INVALID_CHECKPOINT",
                  StrCat("metadata of the container: its schema is \"", Printable(got),
                         "\", wanted ", wanted, " as config.json implies"));
}

// Shapes of all linears from the quantry metadata; of layouts that have it.
nlohmann::json ShapesOf(const OutputReader& reader, const Source& source) {
  nlohmann::json shapes = nlohmann::json::object();
  if (source.parts->schema.empty()) return shapes;
  for (const auto& metadata : reader.metadata()) {
    const auto found = metadata.find("quantry");
    if (found == metadata.end()) continue;
    const nlohmann::json container =
        ParseJson(found->second, "metadata of the container", "INVALID_CHECKPOINT");
    CheckSchema(container, source.parts->schema);
    shapes.update(container.at("linears"));
  }
  for (const auto& [module, described] : shapes.items()) {
    const std::string why =
        WrongKind(module, described, source.parts == &kMixedBinary ? kMixedKind : kGridKind);
    if (!why.empty()) throw UserError("INVALID_CHECKPOINT", why, {{"tensor", module}});
  }
  return shapes;
}

TensorReader ReaderOf(const OutputReader& reader) {
  return [&reader](const std::string& name) { return reader.Read(name); };
}

// The same of GPTQ, whose columns name their groups in any order.
at::Tensor DenseGptq(const OutputReader& reader, const Source& source, const std::string& module) {
  const GptqTensors from = ReadGptq(ReaderOf(reader), module, source.grid.bits, source.gptq);
  CheckFiniteValues(module + kGptq.scales, from.scales);
  const at::Tensor groups = from.groups.to(at::kLong);
  // g_idx states the columns, and they fill whole words (formats.md 3a).
  const bool fits =
      groups.numel() > 0 && groups.numel() * source.grid.bits % 32 == 0 &&
      from.scales.sizes() == from.zeros.sizes() && from.scales.size(0) == from.codes.size(0) &&
      groups.min().item<int64_t>() >= 0 && groups.max().item<int64_t>() < from.scales.size(1);
  if (!fits) {
    throw UserError("INVALID_CHECKPOINT", StrCat(module, ": codes ", from.codes.sizes(),
                                                 ", zero points ", from.zeros.sizes(), ", scales ",
                                                 from.scales.sizes(), " and g_idx do not fit"));
  }
  return from.codes.to(at::kFloat)
      .sub_(from.zeros.to(at::kFloat).index_select(1, groups))
      .mul_(from.scales.to(at::kFloat).index_select(1, groups))
      .to(at::kBFloat16);
}

at::Tensor DenseAwq(const OutputReader& reader, const std::string& module) {
  QuantizedLinear linear;
  linear.codes = ReadAwqWords(reader.Read(module + kAwq.codes)).t().contiguous();
  linear.zeros = ReadAwqWords(reader.Read(module + kAwq.zeros)).t().contiguous();
  const at::Tensor scales = reader.Read(module + kAwq.scales);
  CheckFiniteValues(module + kAwq.scales, scales);
  linear.scales = scales.dim() == 2 ? scales.t().to(at::kFloat).contiguous() : scales;
  if (linear.scales.sizes() != linear.zeros.sizes() || linear.scales.numel() == 0 ||
      linear.scales.size(0) != linear.codes.size(0) ||
      linear.codes.size(1) % linear.scales.size(1) != 0) {
    throw UserError(
        "INVALID_CHECKPOINT",
        StrCat(module, ": codes ", linear.codes.sizes(), ", zero points ", linear.zeros.sizes(),
               " and scales ", linear.scales.sizes(), " do not fit"));
  }
  return linear.Dequantize().to(at::kBFloat16);
}

// What is written, in order: name, and the module it is unpacked from (empty:
// copied).
struct Step {
  std::string name;
  std::string module;
  std::vector<int64_t> shape = {};  // of an unpacked one
  nlohmann::json described = {};    // the metadata's word on the module
};

// Of one linear: the file's own word, where it has one.
GridSpec GridOf(const Source& source, const Step& step) {
  if (source.parts != &kQuantry) return source.grid;
  GridSpec grid = source.grid;
  grid.bits = step.described.at("bits");
  grid.symmetric = step.described.at("symmetric");
  if (grid.bits >= 1 && grid.bits <= 8) return grid;
  throw UserError("INVALID_CHECKPOINT",
                  StrCat(step.module, ": bits must be 1 to 8, got ", grid.bits));
}

// (codes - zeros) * scales in bf16, [N, K].
at::Tensor DenseWeight(const OutputReader& reader, const Source& source, const Step& step) {
  const std::string& module = step.module;
  if (source.parts == &kGptq) return DenseGptq(reader, source, module);
  if (source.parts == &kAwq) return DenseAwq(reader, module);
  const GridSpec grid = GridOf(source, step);
  const int64_t columns = step.shape[1];
  QuantizedLinear linear;
  const at::Tensor scales = reader.Read(module + source.parts->scales);
  const at::Tensor packed = reader.Read(module + source.parts->codes);
  if (columns <= 0 || scales.dim() != 2 || packed.dim() != 2 || scales.size(1) == 0 ||
      columns % scales.size(1) != 0 || scales.size(0) != packed.size(0)) {
    throw UserError("INVALID_CHECKPOINT",
                    StrCat(module, ": ", columns, " columns, codes ", packed.sizes(),
                           " and scales ", scales.sizes(), " do not fit"));
  }
  CheckFiniteValues(module + source.parts->scales, scales);
  linear.codes = ReadPackedRows(packed, columns, grid.bits);
  linear.scales = scales.to(at::kFloat);
  linear.zeros = at::full(scales.sizes(), 1 << (grid.bits - 1), at::kByte);
  if (!grid.symmetric) {
    linear.zeros =
        ReadPackedColumns(reader.Read(module + source.parts->zeros), packed.size(0), grid.bits);
  }
  if (linear.zeros.sizes() != scales.sizes()) {
    throw UserError("INVALID_CHECKPOINT", StrCat(module, ": zero points ", linear.zeros.sizes(),
                                                 " and scales ", scales.sizes(), " do not fit"));
  }
  return linear.Dequantize().to(at::kBFloat16);
}

// The same for a weight of signs and 4-bit codes.
at::Tensor DenseMixedWeight(const OutputReader& reader, const std::string& module,
                            const nlohmann::json& described) {
  std::string mask = described.at("mask").get<std::string>();
  constexpr std::string_view kMask = ".mask";
  mask = mask.size() > kMask.size() ? mask.substr(0, mask.size() - kMask.size()) : std::string();
  const PlannedLinear linear = {module,
                                {described.at("shape").at(0), described.at("shape").at(1)},
                                described.at("salient").get<int64_t>(),
                                mask};
  const auto read = [&](const std::string& name) { return reader.Read(name); };
  return ReadMixedBinary(read, linear).Dequantize().to(at::kBFloat16);
}

// Whether a tensor is a part of a linear, its codes apart.
bool IsPart(const PartNames& parts, const std::string& name) {
  std::vector<std::string> ends = parts.more;
  ends.insert(ends.end(), {parts.scales, parts.zeros});
  if (!parts.shape.empty()) ends.push_back(parts.shape);
  return std::any_of(ends.begin(), ends.end(),
                     [&](const std::string& end) { return EndsWith(name, end); });
}

// Names below a block of the linears that the model of `config` has without a
// bias; none where this engine does not know the model.
std::set<std::string> LinearsWithoutBias(const nlohmann::ordered_json& config) {
  std::set<std::string> names;
  try {
    const Architecture* architecture = nullptr;
    const ModelConfig model = ParseModelConfig(config.dump(), &architecture);
    for (const LinearSpec& linear : architecture->linears) {
      if (!HasBias(model, linear)) names.insert(linear.name);
    }
  } catch (const EngineError&) {  // it is unpacked as it is
  }
  return names;
}

// Whether a tensor says nothing: AutoGPTQ gives every linear a bias, of zeros
// where the model has none, and readers of the dense model do not know it.
bool IsIdleBias(const OutputReader& reader, const Source& source, const std::string& name,
                const std::set<std::string>& without_bias) {
  if (!EndsWith(name, ".bias")) return false;
  const std::string module = name.substr(0, name.size() - 5);
  const bool has_none =
      std::any_of(without_bias.begin(), without_bias.end(),
                  [&](const std::string& linear) { return EndsWith(module, "." + linear); });
  if (!has_none || !reader.Has(module + source.parts->codes)) return false;
  const at::Tensor bias = reader.Read(name);
  return HoldsNumbers(bias) && bias.count_nonzero().item<int64_t>() == 0;
}

std::vector<Step> PlanUnpack(const OutputReader& reader, const Source& source) {
  const nlohmann::json shapes = ShapesOf(reader, source);
  const std::set<std::string> without_bias = LinearsWithoutBias(source.config);
  std::vector<Step> steps;
  for (const std::string& name : reader.names()) {
    if (EndsWith(name, source.parts->codes)) {
      const std::string module = name.substr(0, name.size() - source.parts->codes.size());
      steps.push_back({module + ".weight", module, ShapeOf(reader, source, module, shapes),
                       shapes.value(module, nlohmann::json::object())});
    } else if (!IsPart(*source.parts, name) && !IsIdleBias(reader, source, name, without_bias)) {
      steps.push_back({name, ""});
    }
  }
  return steps;
}

at::Tensor Unpacked(const OutputReader& reader, const Source& source, const Step& step) {
  return source.parts == &kMixedBinary ? DenseMixedWeight(reader, step.module, step.described)
                                       : DenseWeight(reader, source, step);
}

// Writing into the folder that is read would lose it. Links are followed.
void CheckOutputFolder(const std::string& input, const std::string& output) {
  std::error_code error;
  const std::filesystem::path from = std::filesystem::weakly_canonical(input, error);
  if (error) return;  // it will not be opened either
  const std::filesystem::path to = std::filesystem::weakly_canonical(output, error);
  if (error) return;
  if (std::mismatch(from.begin(), from.end(), to.begin(), to.end()).first != from.end()) return;
  throw UserError("INVALID_SPEC",
                  StrCat("output must be another folder than input and not inside it: ", output,
                         " is in ", input),
                  {{"path", output}});
}

// Shards beside an older model.safetensors would be read by nobody.
void CheckHasNoModel(const std::string& output) {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(output, none)) {
    const std::string name = entry.path().filename().string();
    const bool weights = name.starts_with("model") && name.ends_with(".safetensors");
    if (!weights && name != "model.safetensors.index.json") continue;
    throw UserError("INVALID_SPEC",
                    StrCat("output must be a folder without a model: ", output, " has ",
                           Printable(name), "; remove it, or take another folder"),
                    {{"path", output}});
  }
}

}  // namespace

void UnpackFolder(const std::string& input, const std::string& output) {
  CheckOutputFolder(input, output);
  const Source source = Describe(input);
  const OutputReader reader(input, source.parts->stem);
  const std::vector<Step> steps = CheckedInput(input, [&] { return PlanUnpack(reader, source); });
  std::vector<TensorSpec> specs;
  for (const Step& step : steps) {
    if (step.module.empty()) {
      const at::Tensor copied = reader.Read(step.name);
      specs.push_back({step.name, copied.scalar_type(), copied.sizes().vec()});
    } else {
      specs.push_back({step.name, at::kBFloat16, step.shape});
    }
  }
  CheckHasNoModel(output);
  std::filesystem::create_directories(output);
  ShardedWriter writer(output, "model", specs);
  for (const Step& step : steps) {
    const at::Tensor value = CheckedInput(input, [&] {
      return step.module.empty() ? reader.Read(step.name) : Unpacked(reader, source, step);
    });
    writer.Append(step.name, value);
  }
  writer.Finish();
  WriteFileAtomically(output + "/config.json", source.config.dump(2) + "\n");
  CopyModelFiles(input, output);
}

int RunUnpack(int argc, char** argv) {
  std::string input;
  std::string output;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--input") input = argv[i + 1];
    if (flag == "--output") output = argv[i + 1];
  }
  if (input.empty() || output.empty() || argc != 5) {
    std::cerr << "usage: quantry-engine unpack --input DIR --output DIR\n";
    return kUsage;
  }
  CheckAgainstManifest(input);
  UnpackFolder(input, output);
  return 0;
}

}  // namespace quantry::engine
