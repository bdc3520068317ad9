#include "worker/engine/pipeline/training_file.h"

#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/model/safetensors.h"

namespace quantry::engine {
namespace {

constexpr char kTrainingSchema[] = "quantry.training.v1";

void Plan(const std::string& name, const std::vector<at::Tensor>& list,
          std::vector<TensorSpec>& specs, std::vector<at::Tensor>& values) {
  for (size_t i = 0; i < list.size(); ++i) {
    specs.push_back({StrCat(name, ".", i), at::kFloat, list[i].sizes().vec()});
    values.push_back(list[i].contiguous());
  }
}

std::vector<at::Tensor> List(const SafetensorsFile& file, const std::string& name) {
  std::vector<at::Tensor> list;
  while (const TensorInfo* info = file.Find(StrCat(name, ".", list.size()))) {
    list.push_back(file.View(*info).clone());
  }
  return list;
}

// SHA-256 over the numbers: a flipped bit in one would go on unseen.
std::string DigestOf(const TrainingState& state) {
  Sha256 hash;
  const std::string progress =
      nlohmann::json::array({state.steps_done, state.retries, state.loss_first, state.loss_last})
          .dump();
  hash.Update(progress.data(), progress.size());
  for (const auto* list : {&state.tensors, &state.moments}) {
    for (const at::Tensor& tensor : *list) {
      const at::Tensor flat = tensor.to(at::kCPU).contiguous();
      hash.Update(flat.const_data_ptr(), flat.nbytes());
    }
  }
  return hash.Finish();
}

}  // namespace

void WriteTrainingFile(const std::string& path, const std::string& fingerprint,
                       const TrainingState& state) {
  std::vector<TensorSpec> specs;
  std::vector<at::Tensor> values;
  Plan("tensor", state.tensors, specs, values);
  Plan("moment", state.moments, specs, values);
  const nlohmann::json description = {
      {"schema", kTrainingSchema},      {"fingerprint", fingerprint},
      {"steps_done", state.steps_done}, {"retries", state.retries},
      {"loss_first", state.loss_first}, {"loss_last", state.loss_last},
      {"digest", DigestOf(state)}};
  SafetensorsWriter writer(path, specs, {{"quantry", description.dump()}});
  for (size_t i = 0; i < specs.size(); ++i) writer.Append(specs[i].name, values[i]);
  writer.Finish();
}

std::optional<TrainingState> ReadTrainingFile(const std::string& path,
                                              const std::string& fingerprint) {
  if (!Exists(path)) return std::nullopt;
  try {
    const auto file = SafetensorsFile::Open(path);
    const auto description = nlohmann::json::parse(file->metadata().at("quantry"));
    if (description.at("schema") != kTrainingSchema ||
        description.at("fingerprint") != fingerprint) {
      return std::nullopt;
    }
    TrainingState state;
    state.steps_done = description.at("steps_done").get<int64_t>();
    state.retries = description.at("retries").get<int>();
    state.loss_first = description.at("loss_first").get<double>();
    state.loss_last = description.at("loss_last").get<double>();
    state.tensors = List(*file, "tensor");
    state.moments = List(*file, "moment");
    if (state.moments.size() != 2 * state.tensors.size()) return std::nullopt;
    if (description.at("digest") != DigestOf(state)) return std::nullopt;
    return state;
  } catch (const EngineError& error) {
    if (IsOfTheDisk(error)) throw;
    return std::nullopt;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  } catch (const std::out_of_range&) {
    return std::nullopt;
  }
}

}  // namespace quantry::engine
