#include "worker/engine/pipeline/block_file.h"

#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/model/safetensors.h"
#include "worker/engine/quant/packing.h"

namespace quantry::engine {
namespace {

constexpr char kBlockSchema[] = "quantry.block.v1";
constexpr char kMixed[] = "mixed-binary";
constexpr char kValues[] = "values";
constexpr char kDensePrefix[] = "dense.";

[[noreturn]] void Corrupt(const std::string& path, const std::string& how) {
  throw EngineError(FailureClass::kEnvironment, "CHECKPOINT_CORRUPT",
                    StrCat(path, ": ", how, "; delete the checkpoint folder to start over"),
                    {{"path", path}});
}

void HashTensor(Sha256& hash, const std::string& name, const at::Tensor& tensor) {
  if (!tensor.defined()) return;
  const std::string head =
      StrCat(name, "|", c10::toString(tensor.scalar_type()), "|", tensor.sizes(), "|");
  hash.Update(head.data(), head.size());
  const at::Tensor values = tensor.contiguous();
  hash.Update(values.const_data_ptr(), values.nbytes());
}

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

void AddMixed(const std::string& name, const MixedBinaryWeight& weight, NamedTensors& tensors) {
  const auto half = [](const at::Tensor& value) { return value.to(at::kHalf); };
  tensors.emplace_back(name + ".salient", weight.salient);
  tensors.emplace_back(name + ".salient_codes",
                       PackRows(weight.codes, MixedBinaryWeight::kCodeBits));
  tensors.emplace_back(name + ".scales", half(weight.scales));
  tensors.emplace_back(name + ".zeros", weight.zeros);
  tensors.emplace_back(name + ".signs", PackRows(weight.signs, 1));
  tensors.emplace_back(name + ".row_gain", half(weight.row_gain));
  tensors.emplace_back(name + ".row_offset", half(weight.row_offset));
  tensors.emplace_back(name + ".column_gain", half(weight.column_gain));
}

// Tensors of the file, in the order they are written.
NamedTensors FileTensors(const QuantizedBlock& block) {
  NamedTensors tensors;
  for (const QuantizedLinear& linear : block.linears) {
    if (linear.mixed) {
      AddMixed(linear.name, *linear.mixed, tensors);
    } else if (linear.values.defined()) {
      tensors.emplace_back(linear.name + ".values", linear.values);
    } else {
      tensors.emplace_back(linear.name + ".codes", PackRows(linear.codes, linear.grid.bits));
      tensors.emplace_back(linear.name + ".scales", linear.scales.to(linear.scale_dtype));
      tensors.emplace_back(linear.name + ".zeros", linear.zeros);
    }
    if (linear.bias.defined()) tensors.emplace_back(linear.name + ".bias", linear.bias);
  }
  for (const auto& [key, value] : block.dense) tensors.emplace_back(kDensePrefix + key, value);
  return tensors;
}

nlohmann::json Describe(const QuantizedBlock& block, const BlockReport& report) {
  nlohmann::json linears = nlohmann::json::array();
  for (const QuantizedLinear& linear : block.linears) {
    if (linear.mixed) {
      linears.push_back({{"name", linear.name},
                         {"kind", kMixed},
                         {"salient", linear.mixed->salient_columns()},
                         {"columns", linear.columns()}});
      continue;
    }
    if (linear.values.defined()) {
      linears.push_back({{"name", linear.name}, {"kind", kValues}});
      continue;
    }
    linears.push_back({{"name", linear.name},
                       {"bits", linear.grid.bits},
                       {"group_size", linear.grid.group_size},
                       {"symmetric", linear.grid.symmetric},
                       {"columns", linear.codes.size(1)}});
  }
  return {{"schema", kBlockSchema},
          {"index", block.index},
          {"digest", BlockDigest(block)},
          {"linears", linears},
          {"report", ToJson(report)}};
}

BlockReport ReportFrom(const nlohmann::json& json) {
  BlockReport report;
  report.index = json.at("index").get<int>();
  const auto number = [&](const char* name) {
    return json.at(name).is_number() ? json.at(name).get<double>()
                                     : std::numeric_limits<double>::quiet_NaN();
  };
  report.loss_rtn = number("loss_rtn");
  report.loss_final = number("loss_final");
  report.seconds = number("seconds");
  for (const auto& [name, value] : json.at("metrics").items()) report.metrics[name] = value;
  return report;
}

// A copy that outlives the mapping.
at::Tensor Copy(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* info = file.Find(name);
  if (info == nullptr) Corrupt(file.path(), "tensor " + name + " is absent");
  at::Tensor value = file.View(*info).clone();
  file.Release(*info);
  return value;
}

MixedBinaryWeight MixedFrom(const SafetensorsFile& file, const std::string& name,
                            const nlohmann::json& json) {
  const auto floats = [&](const char* part) { return Copy(file, name + part).to(at::kFloat); };
  MixedBinaryWeight weight;
  weight.columns = json.at("columns").get<int64_t>();
  const auto salient = json.at("salient").get<int64_t>();
  weight.salient = Copy(file, name + ".salient");
  weight.codes =
      UnpackRows(Copy(file, name + ".salient_codes"), salient, MixedBinaryWeight::kCodeBits);
  weight.scales = floats(".scales");
  weight.zeros = Copy(file, name + ".zeros");
  weight.signs = UnpackRows(Copy(file, name + ".signs"), weight.columns - salient, 1);
  weight.row_gain = floats(".row_gain");
  weight.row_offset = floats(".row_offset");
  weight.column_gain = floats(".column_gain");
  return weight;
}

QuantizedLinear LinearFrom(const SafetensorsFile& file, const nlohmann::json& json) {
  QuantizedLinear linear;
  linear.name = json.at("name").get<std::string>();
  if (file.Find(linear.name + ".bias") != nullptr) linear.bias = Copy(file, linear.name + ".bias");
  const std::string kind = json.value("kind", "");
  if (kind == kValues) {
    linear.values = Copy(file, linear.name + ".values");
    return linear;
  }
  if (kind == kMixed) {
    linear.mixed = MixedFrom(file, linear.name, json);
    return linear;
  }
  linear.grid = {json.at("bits").get<int>(), json.at("group_size").get<int64_t>(),
                 json.at("symmetric").get<bool>()};
  linear.codes = UnpackRows(Copy(file, linear.name + ".codes"), json.at("columns").get<int64_t>(),
                            linear.grid.bits);
  const at::Tensor scales = Copy(file, linear.name + ".scales");
  linear.scale_dtype = scales.scalar_type();
  linear.scales = scales.to(at::kFloat);
  linear.zeros = Copy(file, linear.name + ".zeros");
  return linear;
}

StoredBlock Parse(const SafetensorsFile& file, const nlohmann::json& json) {
  StoredBlock stored;
  stored.block.index = json.at("index").get<int>();
  stored.report = ReportFrom(json.at("report"));
  for (const nlohmann::json& linear : json.at("linears")) {
    stored.block.linears.push_back(LinearFrom(file, linear));
  }
  const std::string prefix = kDensePrefix;
  for (const TensorInfo& info : file.tensors()) {
    if (info.name.compare(0, prefix.size(), prefix) != 0) continue;
    stored.block.dense[info.name.substr(prefix.size())] = Copy(file, info.name);
  }
  if (BlockDigest(stored.block) != json.at("digest").get<std::string>()) {
    Corrupt(file.path(), "values do not match their digest");
  }
  return stored;
}

}  // namespace

std::string BlockFileName(int index) {
  char name[48];
  std::snprintf(name, sizeof(name), "block-%05d.safetensors", index);
  return name;
}

std::string BlockDigest(const QuantizedBlock& block) {
  Sha256 hash;
  for (const QuantizedLinear& linear : block.linears) {
    HashTensor(hash, linear.name + ".codes", linear.codes);
    HashTensor(hash, linear.name + ".scales", linear.scales);
    HashTensor(hash, linear.name + ".zeros", linear.zeros);
    HashTensor(hash, linear.name + ".bias", linear.bias);
    HashTensor(hash, linear.name + ".values", linear.values);
    if (!linear.mixed) continue;
    HashTensor(hash, linear.name + ".salient", linear.mixed->salient);
    HashTensor(hash, linear.name + ".salient_codes", linear.mixed->codes);
    HashTensor(hash, linear.name + ".salient_scales", linear.mixed->scales);
    HashTensor(hash, linear.name + ".salient_zeros", linear.mixed->zeros);
    HashTensor(hash, linear.name + ".signs", linear.mixed->signs);
    HashTensor(hash, linear.name + ".row_gain", linear.mixed->row_gain);
    HashTensor(hash, linear.name + ".row_offset", linear.mixed->row_offset);
    HashTensor(hash, linear.name + ".column_gain", linear.mixed->column_gain);
  }
  for (const auto& [key, value] : block.dense) HashTensor(hash, key, value);
  return hash.Finish();
}

void WriteBlockFile(const std::string& path, const QuantizedBlock& block,
                    const BlockReport& report) {
  const auto tensors = FileTensors(block);
  std::vector<TensorSpec> specs;
  for (const auto& [name, value] : tensors) {
    specs.push_back({name, value.scalar_type(), value.sizes().vec()});
  }
  SafetensorsWriter writer(path, specs, {{"quantry", Describe(block, report).dump()}});
  for (const auto& [name, value] : tensors) writer.Append(name, value);
  writer.Finish();
}

StoredBlock ReadBlockFile(const std::string& path) {
  const auto file = SafetensorsFile::Open(path);
  const auto found = file->metadata().find("quantry");
  if (found == file->metadata().end()) Corrupt(path, "it is no quantized block");
  try {
    return Parse(*file, nlohmann::json::parse(found->second));
  } catch (const nlohmann::json::exception& error) {
    Corrupt(path, StrCat("its description is malformed: ", error.what()));
  }
}

}  // namespace quantry::engine
