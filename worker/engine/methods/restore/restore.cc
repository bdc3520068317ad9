#include "worker/engine/methods/restore/restore.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "worker/engine/base/json_object.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/linear_shapes.h"
#include "worker/engine/methods/ptq161/parse.h"

namespace quantry::engine {

int64_t Restore::Steps(const Architecture& architecture, const ModelConfig&,
                       const StreamShape&) const {
  return static_cast<int64_t>(architecture.linears.size());
}

int64_t Restore::WorkingBytes(const Architecture& architecture, const ModelConfig& config,
                              const StreamShape& stream, const at::Device& device) const {
  return first_pass_->WorkingBytes(architecture, config, stream, device);
}

int64_t Restore::ValueBits(const LinearShape& shape) const {
  constexpr int64_t kBits = 16;
  return kBits * shape.out * shape.in;
}

MethodResult Restore::Quantize(const BlockTask& task, ProgressSink& progress) const {
  MethodResult result;
  result.block.index = task.block.index;
  result.block.dense = DenseTensors(task.block, task.dense_dtypes);
  for (const Linear& linear : task.block.linears) {
    QuantizedLinear& kept = result.block.linears.emplace_back();
    kept.name = linear.name;
    kept.values = linear.weight.to(at::kBFloat16).cpu();
    if (linear.bias.defined()) kept.bias = linear.bias.cpu();
    progress.Advance(1, linear.name);
  }
  return result;
}

std::unique_ptr<Method> CreateRestore(JsonObject& options) {
  const nlohmann::json none = nlohmann::json::object();
  std::optional<JsonObject> given = options.Object("first_pass");
  JsonObject first = given ? *given : JsonObject(none, options.PathOf("first_pass"));
  first.RefuseIdle({"first_pass_mask"}, "here: there is no second pass (leave it out)");
  std::unique_ptr<Method> method = CreatePtq161(first);
  first.Finish();
  return std::make_unique<Restore>(std::move(method));
}

std::vector<ParameterRow> RestoreParameters() {
  std::vector<ParameterRow> rows = Ptq161Parameters();
  std::erase_if(rows, [](const ParameterRow& row) { return row.name == "first_pass_mask"; });
  for (ParameterRow& row : rows) row.name = "first_pass." + row.name;
  return rows;
}

}  // namespace quantry::engine
