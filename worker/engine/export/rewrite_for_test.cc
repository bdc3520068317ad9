#include "worker/engine/export/rewrite_for_test.h"

#include <vector>

#include "worker/engine/export/output_reader.h"
#include "worker/engine/model/safetensors.h"

namespace quantry::engine::test {
namespace {

using Metadata = std::map<std::string, std::string>;

void Write(const OutputReader& reader, const std::string& path,
           std::map<std::string, at::Tensor> tensors, const Metadata& metadata) {
  for (const std::string& held : reader.names()) tensors.emplace(held, reader.Read(held));
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
  }
  SafetensorsWriter writer(path, specs, metadata);
  for (const TensorSpec& spec : specs) writer.Append(spec.name, tensors.at(spec.name));
  writer.Finish();
}

}  // namespace

void ReplaceTensors(const std::string& folder, const std::string& stem,
                    const std::map<std::string, at::Tensor>& changed) {
  const OutputReader reader(folder, stem);
  Write(reader, folder + "/" + stem + ".safetensors", changed, reader.metadata().at(0));
}

void Redescribe(const std::string& folder,
                const std::function<void(nlohmann::json& description)>& change) {
  const OutputReader reader(folder, "model.quantry");
  auto metadata = reader.metadata().at(0);
  auto description = nlohmann::json::parse(metadata.at("quantry"));
  change(description);
  metadata["quantry"] = description.dump();
  Write(reader, folder + "/model.quantry.safetensors", {}, metadata);
}

}  // namespace quantry::engine::test
