#include "worker/engine/pipeline/stage_file.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/model/safetensors.h"

namespace quantry::engine {
namespace {

constexpr char kStageSchema[] = "quantry.stage.v1";

[[noreturn]] void CorruptStage(const std::string& path, const std::string& how) {
  throw EngineError(FailureClass::kEnvironment, "CHECKPOINT_CORRUPT", StrCat(path, ": ", how),
                    {{"path", path}});
}

// Every list of the state with the form of its names.
template <typename State, typename Visit>
void VisitLists(State& state, const Visit& visit) {
  visit("linear.", ".logits", state.logits);
  visit("linear.", ".scale_logits", state.scale_logits);
  visit("dense.", "", state.dense);
}

}  // namespace

std::string StageFileName(int block, int stages_done) {
  char name[64];
  std::snprintf(name, sizeof(name), "stage-%05d-%03d.safetensors", block, stages_done);
  return name;
}

void WriteStageFile(const std::string& path, int block, const StageState& state) {
  std::vector<TensorSpec> specs;
  std::vector<at::Tensor> values;
  VisitLists(state, [&](const std::string& front, const std::string& back,
                        const std::vector<at::Tensor>& list) {
    for (size_t i = 0; i < list.size(); ++i) {
      specs.push_back({StrCat(front, i, back), at::kFloat, list[i].sizes().vec()});
      values.push_back(list[i].contiguous());
    }
  });
  const nlohmann::json description = {
      {"schema", kStageSchema},           {"block", block},
      {"stages_done", state.stages_done}, {"learning_rate_share", state.learning_rate_share},
      {"loss_soft", state.loss_soft},     {"retries", state.retries}};
  SafetensorsWriter writer(path, specs, {{"quantry", description.dump()}});
  for (size_t i = 0; i < specs.size(); ++i) writer.Append(specs[i].name, values[i]);
  writer.Finish();
}

StageState ReadStageFile(const std::string& path, int block) {
  const auto file = SafetensorsFile::Open(path);
  const auto found = file->metadata().find("quantry");
  if (found == file->metadata().end()) CorruptStage(path, "it is no stage of a block");
  StageState state;
  try {
    const auto description = nlohmann::json::parse(found->second);
    if (description.at("schema") != kStageSchema || description.at("block") != block) {
      CorruptStage(path, StrCat("it is no stage of block ", block));
    }
    state.stages_done = description.at("stages_done").get<int>();
    state.learning_rate_share = description.at("learning_rate_share").get<double>();
    state.loss_soft = description.value("loss_soft", 0.0);
    state.retries = description.value("retries", 0);
  } catch (const nlohmann::json::exception& error) {
    CorruptStage(path, StrCat("its description is malformed: ", error.what()));
  }
  VisitLists(state,
             [&](const std::string& front, const std::string& back, std::vector<at::Tensor>& list) {
               while (const TensorInfo* info = file->Find(StrCat(front, list.size(), back))) {
                 list.push_back(file->View(*info).clone());
               }
             });
  return state;
}

}  // namespace quantry::engine
