#include "worker/engine/export/unpack.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/export/mixed_binary_layout.h"
#include "worker/engine/export/model_files.h"
#include "worker/engine/export/output_reader.h"
#include "worker/engine/export/packed_reader.h"
#include "worker/engine/export/sharded_writer.h"

namespace quantry::engine {
namespace {

constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;
constexpr int kUsage = 2;

// Names a layout gives the parts of a linear.
struct PartNames {
  std::string stem;  // of the weight files
  std::string codes;
  std::string scales;
  std::string zeros;
  std::string shape;  // empty: the layout does not store it
  // Other parts, which unpacking takes along.
  std::vector<std::string> more = {};
};

const PartNames kQuantry = {"model.quantry", ".codes", ".scales", ".zeros", ""};
const PartNames kMixedBinary = {
    "model.quantry",
    ".signs",
    ".salient_scales",
    ".salient_zeros",
    "",
    {".salient_codes", ".row_gain", ".row_offset", ".column_gain", ".mask"}};
const PartNames kCompressedTensors = {"model", ".weight_packed", ".weight_scale",
                                      ".weight_zero_point", ".weight_shape"};

struct Source {
  const PartNames* parts = nullptr;
  nlohmann::ordered_json config;  // without quantization_config
  GridSpec grid;
};

[[noreturn]] void Refuse(const std::string& dir, const std::string& why) {
  throw UserError("INVALID_CHECKPOINT",
                  StrCat(dir, " cannot be unpacked: ", why,
                         "; wanted a quantry or compressed-tensors folder of this engine"),
                  {{"path", dir}});
}

Source Describe(const std::string& dir) {
  const std::string path = dir + "/config.json";
  ParseJson(ReadFile(path, kMaxConfigBytes, "INVALID_CHECKPOINT"), path, "INVALID_CHECKPOINT");
  Source source;
  source.config =
      nlohmann::ordered_json::parse(ReadFile(path, kMaxConfigBytes, "INVALID_CHECKPOINT"));
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
    } else if (quantization.at("format") == "pack-quantized") {
      source.parts = &kCompressedTensors;
      const auto& weights = quantization.at("config_groups").at("group_0").at("weights");
      source.grid = {weights.at("num_bits"), -1, weights.at("symmetric")};
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

// Columns of a linear: stored, or what the input's shape says.
int64_t Columns(const OutputReader& reader, const Source& source, const std::string& module,
                const nlohmann::json& shapes) {
  if (!source.parts->shape.empty()) {
    const at::Tensor shape = reader.Read(module + source.parts->shape);
    if (shape.scalar_type() != at::kLong || shape.numel() != 2) {
      throw UserError("INVALID_CHECKPOINT", module + ": weight_shape must be two int64");
    }
    return shape[1].item<int64_t>();
  }
  return shapes.at(module).at("shape").at(1).get<int64_t>();
}

// Shapes of all linears from the quantry metadata.
nlohmann::json ShapesOf(const OutputReader& reader) {
  nlohmann::json shapes = nlohmann::json::object();
  for (const auto& metadata : reader.metadata()) {
    const auto found = metadata.find("quantry");
    if (found == metadata.end()) continue;
    const nlohmann::json container =
        ParseJson(found->second, "metadata of the container", "INVALID_CHECKPOINT");
    shapes.update(container.at("linears"));
  }
  return shapes;
}

// (codes - zeros) * scales in bf16, [N, K].
at::Tensor DenseWeight(const OutputReader& reader, const Source& source, const std::string& module,
                       int64_t columns) {
  QuantizedLinear linear;
  const at::Tensor scales = reader.Read(module + source.parts->scales);
  const at::Tensor packed = reader.Read(module + source.parts->codes);
  if (columns <= 0 || scales.dim() != 2 || packed.dim() != 2 || scales.size(1) == 0 ||
      columns % scales.size(1) != 0 || scales.size(0) != packed.size(0)) {
    throw UserError("INVALID_CHECKPOINT",
                    StrCat(module, ": ", columns, " columns, codes ", packed.sizes(),
                           " and scales ", scales.sizes(), " do not fit"));
  }
  linear.codes = ReadPackedRows(packed, columns, source.grid.bits);
  linear.scales = scales.to(at::kFloat);
  linear.zeros = at::full(scales.sizes(), 1 << (source.grid.bits - 1), at::kByte);
  if (!source.grid.symmetric) {
    linear.zeros = ReadPackedColumns(reader.Read(module + source.parts->zeros), packed.size(0),
                                     source.grid.bits);
  }
  return linear.Dequantize().to(at::kBFloat16);
}

// The same for a weight of signs and 4-bit codes.
at::Tensor DenseMixedWeight(const OutputReader& reader, const std::string& module,
                            const nlohmann::json& described) {
  std::string mask = described.at("mask").get<std::string>();
  mask.resize(mask.size() - std::min<size_t>(mask.size(), 5));  // ".mask"
  const PlannedLinear linear = {module,
                                {described.at("shape").at(0), described.at("shape").at(1)},
                                described.at("salient").get<int64_t>(),
                                mask};
  const auto read = [&](const std::string& name) { return reader.Read(name); };
  return ReadMixedBinary(read, linear).Dequantize().to(at::kBFloat16);
}

// What is written, in order: name, and the module it is unpacked from (empty:
// copied).
struct Step {
  std::string name;
  std::string module;
  int64_t columns = 0;
  nlohmann::json described = {};  // the metadata's word on the module
};

bool IsPart(const PartNames& parts, const std::string& name) {
  return EndsWith(name, parts.scales) || EndsWith(name, parts.zeros) ||
         (!parts.shape.empty() && EndsWith(name, parts.shape)) ||
         std::any_of(parts.more.begin(), parts.more.end(),
                     [&](const std::string& part) { return EndsWith(name, part); });
}

std::vector<Step> PlanUnpack(const OutputReader& reader, const Source& source) {
  const nlohmann::json shapes = ShapesOf(reader);
  std::vector<Step> steps;
  for (const std::string& name : reader.names()) {
    if (EndsWith(name, source.parts->codes)) {
      const std::string module = name.substr(0, name.size() - source.parts->codes.size());
      steps.push_back({module + ".weight", module, Columns(reader, source, module, shapes),
                       shapes.value(module, nlohmann::json::object())});
    } else if (!IsPart(*source.parts, name)) {
      steps.push_back({name, ""});
    }
  }
  return steps;
}

at::Tensor Unpacked(const OutputReader& reader, const Source& source, const Step& step) {
  if (source.parts != &kMixedBinary) return DenseWeight(reader, source, step.module, step.columns);
  try {
    return DenseMixedWeight(reader, step.module, step.described);
  } catch (const nlohmann::json::exception& error) {
    throw UserError("INVALID_CHECKPOINT", StrCat(step.module, ": metadata: ", error.what()));
  }
}

}  // namespace

void UnpackFolder(const std::string& input, const std::string& output) {
  const Source source = Describe(input);
  const OutputReader reader(input, source.parts->stem);
  std::vector<Step> steps;
  try {
    steps = PlanUnpack(reader, source);
  } catch (const nlohmann::json::exception& error) {
    Refuse(input, StrCat("metadata: ", error.what()));
  }
  std::vector<TensorSpec> specs;
  for (const Step& step : steps) {
    const at::Tensor first =
        reader.Read(step.module.empty() ? step.name : step.module + source.parts->codes);
    if (step.module.empty()) {
      specs.push_back({step.name, first.scalar_type(), first.sizes().vec()});
    } else {
      specs.push_back({step.name, at::kBFloat16, {first.size(0), step.columns}});
    }
  }
  std::filesystem::create_directories(output);
  ShardedWriter writer(output, "model", specs, [](const std::vector<TensorSpec>&) {
    return std::map<std::string, std::string>{{"format", "pt"}};
  });
  for (const Step& step : steps) {
    writer.Append(step.name,
                  step.module.empty() ? reader.Read(step.name) : Unpacked(reader, source, step));
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
  UnpackFolder(input, output);
  return 0;
}

}  // namespace quantry::engine
