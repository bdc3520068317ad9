#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "worker/engine/export/output_reader.h"
#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

// Whether config.json of a folder says that it is a quantry container. Throws
// INVALID_CHECKPOINT when there is no config.json.
bool IsQuantryContainer(const std::string& dir);

// The quantized linears of a quantry container (docs/formats/quantry-
// container.md), read one by one. Thread-safe.
class ContainerReader {
 public:
  // Throws UserError INVALID_CHECKPOINT: a schema this engine does not know,
  // metadata that is not what the schema says, a linear of another kind.
  explicit ContainerReader(const std::string& dir);

  static constexpr char kStem[] = "model.quantry";

  WeightKind kind() const { return kind_; }
  // Module paths: "model.layers.0.self_attn.q_proj".
  const std::set<std::string>& modules() const { return modules_; }
  // One of them; name = its path, no bias. Throws INVALID_CHECKPOINT when its
  // tensors do not fit each other or its shape.
  QuantizedLinear Read(const std::string& module) const;

 private:
  QuantizedLinear ReadGrid(const std::string& module, const nlohmann::json& described) const;
  QuantizedLinear ReadMixed(const std::string& module, const nlohmann::json& described) const;

  std::string dir_;
  OutputReader reader_;
  WeightKind kind_ = WeightKind::kGrid;
  nlohmann::json linears_;  // metadata of all shards
  std::set<std::string> modules_;
};

}  // namespace quantry::engine
