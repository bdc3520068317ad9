#include "worker/engine/export/quantry_container.h"

#include <nlohmann/json.hpp>

#include "worker/engine/export/packed_reader.h"
#include "worker/engine/quant/packing.h"

namespace quantry::engine {

std::vector<TensorSpec> QuantryLayout::Specs(const PlannedLinear& linear) const {
  const auto [rows, columns] = linear.shape;
  std::vector<TensorSpec> specs = {
      {linear.module + ".codes", at::kInt, {rows, PackedWords(columns, grid().bits)}},
      {linear.module + ".scales", scale_dtype(), {rows, Groups(linear)}}};
  if (!grid().symmetric) {
    specs.push_back(
        {linear.module + ".zeros", at::kInt, {PackedWords(rows, grid().bits), Groups(linear)}});
  }
  return specs;
}

std::vector<at::Tensor> QuantryLayout::Encode(const QuantizedLinear& linear) const {
  std::vector<at::Tensor> values = {PackRows(linear.codes, grid().bits),
                                    linear.scales.to(scale_dtype())};
  if (!grid().symmetric) values.push_back(PackColumns(linear.zeros, grid().bits));
  return values;
}

std::string QuantryLayout::Mismatch(const TensorReader& read, const PlannedLinear& linear,
                                    const QuantizedLinear& expected) const {
  const auto [rows, columns] = linear.shape;
  const at::Tensor codes = ReadPackedRows(read(linear.module + ".codes"), columns, grid().bits);
  at::Tensor zeros = at::full({rows, Groups(linear)}, 1 << (grid().bits - 1), at::kByte);
  if (!grid().symmetric) {
    zeros = ReadPackedColumns(read(linear.module + ".zeros"), rows, grid().bits);
  }
  return CompareIntegers(codes, read(linear.module + ".scales"), zeros, expected);
}

void QuantryLayout::Describe(nlohmann::ordered_json& config) const {
  config["quantization_config"] = {{"quant_method", "quantry"},
                                   {"schema", "quantry.container.v1"},
                                   {"bits", grid().bits},
                                   {"group_size", grid().group_size},
                                   {"symmetric", grid().symmetric}};
}

std::map<std::string, std::string> QuantryLayout::Metadata(
    const std::vector<PlannedLinear>& linears) const {
  nlohmann::json grids = nlohmann::json::object();
  for (const PlannedLinear& linear : linears) {
    grids[linear.module] = {{"bits", grid().bits},
                            {"group_size", grid().group_size},
                            {"symmetric", grid().symmetric},
                            {"shape", {linear.shape.out, linear.shape.in}}};
  }
  const nlohmann::json container = {{"schema", "quantry.container.v1"}, {"linears", grids}};
  return {{"format", "pt"}, {"quantry", container.dump()}};
}

std::string QuantryLayout::Compatibility(const std::vector<PlannedLinear>&) const {
  return "Read by quantry-engine (unpack turns it into a dense checkpoint). Holds exactly the "
         "integers, scales and zero points; no other engine reads it.";
}

}  // namespace quantry::engine
