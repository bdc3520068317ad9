#include "worker/engine/export/container_reader.h"

#include "worker/engine/base/error.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/export/checked_input.h"
#include "worker/engine/export/mixed_binary_layout.h"
#include "worker/engine/export/packed_reader.h"
#include "worker/engine/model/config.h"

namespace quantry::engine {
namespace {

constexpr std::string_view kMaskSuffix = ".mask";

EngineError Invalid(const std::string& dir, const std::string& why) {
  return UserError("INVALID_CHECKPOINT", StrCat(dir, ": ", why), {{"path", dir}});
}

// quantization_config; null when there is none.
nlohmann::json QuantizationOf(const std::string& dir) {
  const std::string path = dir + "/config.json";
  const nlohmann::json config =
      ParseJson(ReadConfigText(dir, kMaxConfigBytes), path, "INVALID_CHECKPOINT");
  return config.is_object() ? config.value("quantization_config", nlohmann::json()) : config;
}

}  // namespace

bool IsQuantryContainer(const std::string& dir) {
  const nlohmann::json quantization = QuantizationOf(dir);
  return quantization.is_object() &&
         quantization.value("quant_method", nlohmann::json()) == "quantry";
}

ContainerReader::ContainerReader(const std::string& dir)
    : dir_(dir), reader_(dir, kStem), linears_(nlohmann::json::object()) {
  CheckedInput(dir, [&] {
    for (const auto& metadata : reader_.metadata()) {
      const auto found = metadata.find("quantry");
      if (found == metadata.end()) continue;
      const nlohmann::json container =
          ParseJson(found->second, "metadata of the container", "INVALID_CHECKPOINT");
      const auto schema = container.at("schema").get<std::string>();
      if (schema != kGridContainerSchema && schema != kMixedContainerSchema) {
        throw Invalid(dir, StrCat("its schema is \"", Printable(schema), "\", this engine knows ",
                                  kGridContainerSchema, " and ", kMixedContainerSchema,
                                  ": it was written by a newer one"));
      }
      kind_ = schema == kMixedContainerSchema ? WeightKind::kMixedBinary : WeightKind::kGrid;
      linears_.update(container.at("linears"));
    }
    if (linears_.empty()) throw Invalid(dir, "no file of it describes its linears");
    for (const auto& [module, described] : linears_.items()) {
      const std::string why =
          WrongKind(module, described, kind_ == WeightKind::kMixedBinary ? kMixedKind : kGridKind);
      if (!why.empty()) throw Invalid(dir, why);
      modules_.insert(module);
    }
  });
}

QuantizedLinear ContainerReader::Read(const std::string& module) const {
  return CheckedInput(dir_, [&] {
    const nlohmann::json& described = linears_.at(module);
    return kind_ == WeightKind::kMixedBinary ? ReadMixed(module, described)
                                             : ReadGrid(module, described);
  });
}

QuantizedLinear ContainerReader::ReadGrid(const std::string& module,
                                          const nlohmann::json& described) const {
  QuantizedLinear linear;
  linear.name = module;
  linear.grid = {described.at("bits"), described.at("group_size"), described.at("symmetric")};
  const int64_t rows = described.at("shape").at(0), columns = described.at("shape").at(1);
  const at::Tensor scales = reader_.Read(module + ".scales");
  const at::Tensor packed = reader_.Read(module + ".codes");
  const int bits = linear.grid.bits;
  if (bits < 1 || bits > 8 || rows < 1 || columns < 1 || scales.dim() != 2 ||
      scales.size(0) != rows || scales.size(1) == 0 || columns % scales.size(1) != 0 ||
      packed.dim() != 2 || packed.size(0) != rows) {
    throw Invalid(dir_,
                  StrCat(module, ": ", bits, " bits, shape ", rows, " x ", columns, ", codes ",
                         packed.sizes(), " and scales ", scales.sizes(), " do not fit"));
  }
  CheckFiniteValues(module + ".scales", scales);
  linear.codes = ReadPackedRows(packed, columns, bits);
  linear.scales = scales.to(at::kFloat);
  linear.scale_dtype = scales.scalar_type();
  linear.zeros = linear.grid.symmetric
                     ? at::full(scales.sizes(), 1 << (bits - 1), at::kByte)
                     : ReadPackedColumns(reader_.Read(module + ".zeros"), rows, bits);
  if (linear.zeros.sizes() != scales.sizes()) {
    throw Invalid(dir_, StrCat(module, ": zero points ", linear.zeros.sizes(), " and scales ",
                               scales.sizes(), " do not fit"));
  }
  return linear;
}

QuantizedLinear ContainerReader::ReadMixed(const std::string& module,
                                           const nlohmann::json& described) const {
  PlannedLinear planned;
  planned.module = module;
  planned.shape = {described.at("shape").at(0), described.at("shape").at(1)};
  planned.salient = described.at("salient");
  const auto mask = described.at("mask").get<std::string>();
  if (!mask.ends_with(kMaskSuffix) || planned.shape.out < 1 || planned.shape.in < 1 ||
      planned.shape.out > kMostSide || planned.shape.in > kMostSide || planned.salient < 0 ||
      planned.salient > planned.shape.in) {
    throw Invalid(dir_, StrCat(module, ": shape ", planned.shape.out, " x ", planned.shape.in, ", ",
                               planned.salient, " salient columns and the mask '", Printable(mask),
                               "' do not fit"));
  }
  planned.mask_module = mask.substr(0, mask.size() - kMaskSuffix.size());
  QuantizedLinear linear;
  linear.name = module;
  linear.mixed =
      ReadMixedBinary([&](const std::string& name) { return reader_.Read(name); }, planned);
  return linear;
}

}  // namespace quantry::engine
